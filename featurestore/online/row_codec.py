"""Columns to packed online rows and back: the other half (beside `keys`) of what writers and readers must agree on.

The layout stands in docs/online-format.md; `CODEC_VERSION` is written in every row.
"""

from __future__ import annotations

from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_decoder import DecodedRows, RowDecoder
from featurestore.online.row_encoder import RowEncoder
from featurestore.online.row_layout import CODEC_VERSION, ORDER_KEY_BYTES

__all__ = ["CODEC_VERSION", "ORDER_KEY_BYTES", "DecodedRows", "OrderKeys", "RowDecoder", "RowEncoder"]
