"""The APIs that are served, each under its own route."""

from skylift.api.resources import V1
from skylift.api.resources_v2 import V2

APIS = (V1, V2)
