"""What is known and shipped: devices and their fits, models, prices, engines, learnt errors."""
