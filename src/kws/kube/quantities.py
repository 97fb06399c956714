"""Amounts of resources as Kubernetes writes them."""

from collections.abc import Mapping
from decimal import Decimal


def amounts(quantities: Mapping[str, str]) -> dict[str, Decimal]:
    """Converts quantities by resource, such as {"cpu": "500m", "memory": "4Gi"}, to numbers: cores, bytes."""
    from kubernetes.utils.quantity import parse_quantity

    return {name: parse_quantity(quantity) for name, quantity in quantities.items()}
