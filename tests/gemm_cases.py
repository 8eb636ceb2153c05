"""A device and plain twins of the product and expert costs, shared by tests of several folders."""

from __future__ import annotations

import math

from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link

HOPPER = Device(
    "h", "h", "NVIDIA", "hopper", 8e10, 3.35e12, {"bf16": 1e15, "fp8": 2e15, "int8": 2e15}, 132, 5e7, 700.0, False
)


def hardware(device: Device = HOPPER, parameters=None) -> Hardware:
    link = Link("nvlink", 4.5e11, 1e-6, 8, "nvlink")
    host = Host(None, None, None, None)
    return Hardware(device.slug, device, 8, 8, link, None, host, None, Efficiency(parameters or {}))


def joined(a: float, b: float, p: float) -> float:
    return (a**p + b**p) ** (1 / p)


def gemm_twin(m, n, k, fmt_bytes, width, flop_per_s, device, p) -> float:
    """One product, term by term as docs/method/gemm.md writes it."""
    sms = device.n_sms
    best = math.inf
    for size, frac in ((128, 1.0), (64, p["small_tile_frac"])):
        waves = math.ceil(m / size) * math.ceil(n / size) / sms
        if waves < 1:
            waves = max(waves, min(p["split_k"] / k, 1))
        else:
            waves += p["wave_frac"] * (math.ceil(waves) - waves)
        tile_flop = 2 * size * size * (k + p["fill_k"])
        best = min(best, waves * tile_flop / (flop_per_s / sms * p["compute_frac"] * frac))
    n_bytes = n * k * fmt_bytes + m * k * width + 2 * m * n
    memory = n_bytes / (device.memory_bytes_per_s * p["memory_frac"])
    memory /= 1 + p["l2_gain"] / (1 + (n_bytes / (device.l2_bytes * p["l2_frac"])) ** 2)
    time = joined(best, memory, p["sharpness"])
    if width < 2:
        if m > 16 and m % 16:
            time *= p["misaligned_factor"]
        row = max(k, p["quantize_row_values"])
        time += m * row * (2 + width) / (device.memory_bytes_per_s * p["quantize_frac"])
    return p["launch_s"] + time


def experts_twin(
    tokens, pairs, distinct, max_load, n_local, hidden, inner, matrices, fmt_bytes, rate, device, p, routed
):
    """The expert block, term by term as docs/method/experts.md writes it."""
    distinct = min(distinct, n_local)
    skew = 1 - min(pairs / (distinct * max_load), 1)
    time = p["launch_s"] + p["align_s"] * math.sqrt(min(tokens, 1024))
    for n, k in (((matrices - 1) * inner, hidden), (hidden, inner)):
        compute = math.inf
        for rows, frac in ((128, 1.0), (16, p["small_tile_frac"])):
            padded = max(distinct * rows, pairs + rows / 2 * distinct)
            flop = 2 * padded * math.ceil(n / 128) * 128 * (k + p["fill_k"])
            compute = min(compute, flop / (rate * p["compute_frac"] * frac))
        compute *= 1 + p["skew_frac"] * skew
        memory = distinct * n * k * fmt_bytes / (device.memory_bytes_per_s * p["memory_frac"])
        memory *= 1 + 64 * device.n_sms / (p["stream_tiles"] * distinct * n)
        time += joined(compute, memory, p["sharpness"])
    rows = routed * (1 - p["local_frac"]) + pairs * p["local_frac"]
    return time + rows * (4 * hidden + 2 * matrices * inner) / (device.memory_bytes_per_s * p["permute_frac"])
