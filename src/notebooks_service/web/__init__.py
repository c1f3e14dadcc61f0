"""The service: pages, REST API and events. Knows the hub by HTTP only."""
