"""Side-by-side timings; nothing imports them."""
