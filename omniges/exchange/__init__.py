"""Pages, videos and exports (file formats of other tools) of recordings and results. This package needs no torch."""
