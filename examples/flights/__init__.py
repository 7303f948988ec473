"""Late arrivals of flights from New York, 2013."""
