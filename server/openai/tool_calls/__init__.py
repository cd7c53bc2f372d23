"""Tool calls: how models write them and how clients read them."""
