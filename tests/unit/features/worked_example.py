"""The ten customers of the rules' worked example, and every value the rules print for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

AS_OF = datetime(2025, 12, 31, 16, tzinfo=UTC)
ZONE = "Asia/Shanghai"

TRANSACTIONS = """\
order_id,customer_id,transacted_at,product_id,category,quantity,amount,discount,coupon_id,channel,payment_method
a1,A,2025-03-07T11:00Z,P3,daily,1,200,0,,store,cash
a2,A,2025-05-26T04:30Z,P1,skincare,1,260,0,,app,wechat
a3,A,2025-07-25T12:00Z,P1,skincare,1,240,60,OFF20,app,wechat
a4,A,2025-09-23T04:15Z,P3,daily,1,180,0,,store,card
a5,A,2025-11-21T16:30Z,P1,skincare,1,200,0,,app,wechat
a5,A,2025-11-21T16:30Z,P2,skincare,1,120,0,,app,wechat
a6,A,2025-12-22T04:00Z,P1,skincare,2,150,50,HALF2,app,wechat
b1,B,2025-09-23T10:00Z,P1,skincare,1,90,0,,app,wechat
b2,B,2025-10-23T10:00Z,P1,skincare,2,160,50,M199,app,wechat
b3,B,2025-11-22T10:00Z,P3,daily,1,100,0,,app,wechat
b3,B,2025-11-27T02:00Z,P3,daily,-1,-40,0,,app,wechat
c1,C,2025-12-22T13:00Z,P4,makeup,1,68,20,FIRST20,app,wechat
c2,C,2025-12-31T16:00Z,P4,makeup,1,500,0,,app,wechat
d1,D,2025-08-04T01:00Z,P1,skincare,1,120,0,,app,wechat
d2,D,2025-10-03T01:00Z,P1,skincare,1,130,0,,app,wechat
e1,E,2025-07-04T07:00Z,P4,makeup,1,400,0,,app,wechat
f1,F,2025-11-17T07:00Z,P3,daily,1,59,0,,app,wechat
g1,G,2025-08-14T03:00Z,P3,daily,1,100,0,,app,wechat
g2,G,2025-09-13T03:00Z,P3,daily,1,100,0,,app,wechat
g3,G,2025-10-13T03:00Z,P3,daily,1,100,0,,app,wechat
g4,G,2025-11-12T03:00Z,P1,skincare,1,100,0,,app,wechat
g5,G,2025-12-12T03:00Z,P1,skincare,1,100,0,,app,wechat
g6,G,2025-12-12T09:00Z,P3,daily,1,100,0,,app,wechat
h1,H,2025-12-07T02:00Z,P2,skincare,1,300,0,,app,wechat
h1,H,2025-12-12T02:00Z,P2,skincare,-1,-300,0,,app,wechat
i1,I,2025-12-12T14:00Z,P4,makeup,1,75,0,,app,wechat
i2,I,2025-12-27T14:00Z,P4,makeup,1,85,0,,app,wechat
"""

EXPOSURES = """\
customer_id,campaign_id,assigned_at,arm
A,K1,2025-11-02T02:00Z,M199
A,K2,2025-12-12T02:00Z,HALF2
A,K3,2025-12-20T02:00Z,control
A,K4,2025-12-27T02:00Z,FIX10
B,K1,2025-10-21T02:00Z,M199
B,K2,2025-12-12T02:00Z,control
B,K4,2025-12-27T02:00Z,FIX10
"""

OFFERS: list[dict[str, Any]] = [
    {"coupon_id": "M199", "kind": "threshold_off", "params": {"threshold": 199, "off": 50}},
    {"coupon_id": "HALF2", "kind": "nth_item", "params": {}},
    {"coupon_id": "OFF20", "kind": "percent_off", "params": {"rate_off": 0.20}},
    {"coupon_id": "FIRST20", "kind": "first_order", "params": {"off": 20}},
    {"coupon_id": "FIX10", "kind": "fixed_off", "params": {"off": 10}, "valid_days": 7},
]

N: Any = None
# Columns: customers A to I. Numbers as printed, to four decimals.
EXPECTED: dict[str, list[float | None]] = {
    "recency_days": [10, 40, 10, 90, 181, 45, 20, N, 5],
    "tenure_days": [300, 100, 10, 150, 181, 45, 140, N, 20],
    "orders_total": [6, 3, 1, 2, 1, 1, 6, 0, 2],
    "order_days_365d": [6, 3, 1, 2, 1, 1, 5, 0, 2],
    "spend_365d": [1350, 310, 68, 250, 400, 59, 600, 0, 160],
    "spend_90d": [470, 220, 68, 130, 0, 59, 400, 0, 160],
    "interval_mean_days": [58, 30, N, 60, N, N, 30, N, 15],
    "interval_expected_days": [50, 30, 30, 40, 30, 30, 30, N, 25],
    "overdue_ratio": [0.2, 1.3333, 0.3333, 2.25, 6.0333, 1.5, 0.6667, N, 0.2],
    "spend_trend_90d": [0.0562, 0.4194, 1, 0.04, N, 1, 0.3333, N, 1],
    "weekend_share_365d": [0.1667, 0.3333, 0, 0, 0, 0, 0.1667, N, 0.5],
    "novelty_share_365d": [0.4, 0.5, N, 0, N, N, 0.25, N, 0],
    "discount_rate_365d": [0.0753, 0.125, 0.2273, 0, 0, 0, 0, N, 0],
    # Counted by hand from the lines above; the rules do not print these.
    "orders_30d": [1, 0, 1, 0, 0, 0, 2, 0, 2],
    "order_days_total": [6, 3, 1, 2, 1, 1, 5, 0, 2],
    "spend_total": [1350, 310, 68, 250, 400, 59, 600, 0, 160],
    "categories_365d": [2, 2, 1, 1, 1, 1, 2, 0, 1],
    "order_value_mean_365d": [225, 350 / 3, 68, 125, 400, 59, 100, N, 80],
    "discounted_order_share_365d": [0.3333, 0.3333, 1, 0, 0, 0, 0, N, 0],
    "offers_28d": [2, 1, 0, 0, 0, 0, 0, 0, 0],
    "response_rate_365d": [0.2143, 0.25, N, N, N, N, N, N, N],
}
EXPECTED_TEXT: dict[str, list[str | None]] = {
    "kind_favourite_365d": ["nth_item", "threshold_off", "first_order", N, N, N, N, N, N],
    "category_favourite_365d": [
        *("skincare", "skincare", "makeup", "skincare", "makeup", "daily", "daily", N, "makeup"),
    ],
    "channel_favourite_365d": ["app"] * 7 + [N, "app"],
}
SEGMENTS: dict[str, list[object]] = {
    "tier": [
        *("champion", "potential", "new", "sleeping", "lost"),
        *("regular", "regular", "prospect", "new"),
    ],
    "tier_detail": [N, N, N, N, N, "single_cooling", "five_orders", N, N],
    "rfm_class": ["HHH", "LHH", "HLL", "LLL", "LLH", "LLL", "HHH", "prospect", "HLL"],
    "lifecycle_stage": [
        *("mature", "growth", "novice", "declining", "lost"),
        *("novice", "growth", "novice", "growth"),
    ],
    "r_score": [3, 2, 3, 1, 1, 1, 2, N, 3],
    "f_score": [3, 3, 1, 2, 1, 1, 3, N, 2],
    "m_score": [3, 2, 1, 2, 3, 1, 3, N, 1],
}
