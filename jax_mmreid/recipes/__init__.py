"""The published recipe of each method as config fields: what the configs of its datasets share."""
