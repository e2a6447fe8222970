"""Exports of marketplaces as Doorstep datasets, one module per marketplace."""

from training.importers.shopee import ImportReport, import_shopee

__all__ = ["ImportReport", "import_shopee"]
