"""Models behind an address: needs the extra `serve` (`pip install 'davit[serve]'`)."""
