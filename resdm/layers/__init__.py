"""Building blocks of the network: wavelet stem, additional paths, upsampling, text tower."""
