"""Grids and heaps the serving engine's kernel computes with."""

from __future__ import annotations

from moeplan.kernels import inner


@inner
def cell(grid, x):
    """Index and fraction of x between two grid points; clamped below the grid, extrapolated above it."""
    if x <= grid[0]:
        return 0, 0.0
    low = 0
    high = grid.size - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if grid[middle] <= x:
            low = middle
        else:
            high = middle
    return low, (x - grid[low]) / (grid[low + 1] - grid[low])


@inner
def interpolate(grid, values, x):
    i, fraction = cell(grid, x)
    return values[i] + fraction * (values[i + 1] - values[i])


@inner
def interpolate2(grid0, grid1, values, x0, x1):
    i, f0 = cell(grid0, x0)
    j, f1 = cell(grid1, x1)
    low = values[i, j] + f0 * (values[i + 1, j] - values[i, j])
    high = values[i, j + 1] + f0 * (values[i + 1, j + 1] - values[i, j + 1])
    return low + f1 * (high - low)


@inner
def heap_push(keys, items, size, key, item):
    """Adds an entry to a heap of ``size`` entries in order of (key, item)."""
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        if keys[parent] < key or (keys[parent] == key and items[parent] <= item):
            break
        keys[child] = keys[parent]
        items[child] = items[parent]
        child = parent
    keys[child] = key
    items[child] = item


@inner
def heap_remove(keys, items, size, position):
    """Takes out one entry of a heap of ``size`` entries; position 0 is the smallest."""
    key = keys[size - 1]
    item = items[size - 1]
    while position > 0:
        parent = (position - 1) >> 1
        if keys[parent] < key or (keys[parent] == key and items[parent] <= item):
            break
        keys[position] = keys[parent]
        items[position] = items[parent]
        position = parent
    child = 2 * position + 1
    while child < size - 1:
        right = child + 1
        if right < size - 1 and (
            keys[right] < keys[child] or (keys[right] == keys[child] and items[right] < items[child])
        ):
            child = right
        if keys[child] > key or (keys[child] == key and items[child] >= item):
            break
        keys[position] = keys[child]
        items[position] = items[child]
        position = child
        child = 2 * position + 1
    keys[position] = key
    items[position] = item
