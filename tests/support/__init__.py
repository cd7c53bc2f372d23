"""What several tests need: fakes, files, servers in processes of their own."""
