"""What a gateway uses: ask for replicas, and follow what becomes of them."""
