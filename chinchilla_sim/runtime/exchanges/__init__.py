"""What ranks tell each other: codecs, buckets, groups, sharding."""
