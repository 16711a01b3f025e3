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
    {
        "coupon_id": "FIRST20",
        "kind": "first_order",
        "params": {"kind": "fixed_off", "params": {"off": 20}},
    },
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
    "return_share_365d": [0, 0.1143, 0, 0, 0, 0, 0, 1, 0],
    "workday_lunch_share_365d": [0.5, 0, 0, 0, 0, 0, 0.6667, N, 0],
    "staple_share_365d": [0.5714, 0, 0, 0, 0, 0, 0.6667, N, 0],
    "price_sensitivity_score": [0.2922, 0.375, 0.8788, 0, 0, 0, 0, N, 0],
    "clv_order_day_value_mean": [230, 110, N, 130, N, N, 125, N, 85],
    "interval_cv_ratio": [0.2759, 0, N, N, N, N, 0, N, N],
    "interval_trend_ratio": [0.5, 1, N, N, N, N, 1, N, N],
    "response_rate_365d": [0.2143, 0.25, N, N, N, N, N, N, N],
    "redemption_rate_365d": [0.5, 1, N, N, N, N, N, N, N],
    "offers_365d": [3, 2, 0, 0, 0, 0, 0, 0, 0],
    "offers_28d": [2, 1, 0, 0, 0, 0, 0, 0, 0],
    "offers_7d": [1, 1, 0, 0, 0, 0, 0, 0, 0],
    "offer_recency_days": [5, 5, N, N, N, N, N, N, N],
    "unused_coupons": [1, 1, 0, 0, 0, 0, 0, 0, 0],
    # Counted by hand from the lines above; the rules do not print these.
    "orders_30d": [1, 0, 1, 0, 0, 0, 2, 0, 2],
    "order_days_total": [6, 3, 1, 2, 1, 1, 5, 0, 2],
    "spend_total": [1350, 310, 68, 250, 400, 59, 600, 0, 160],
    "categories_365d": [2, 2, 1, 1, 1, 1, 2, 0, 1],
    "order_value_mean_365d": [225, 350 / 3, 68, 125, 400, 59, 100, N, 80],
    "discounted_order_share_365d": [0.3333, 0.3333, 1, 0, 0, 0, 0, N, 0],
    "orders_90d": [2, 2, 1, 1, 0, 1, 4, 0, 2],
    "same_season_share_730d": [0.1667, 0, 0, 0, 0, 0, 0, N, 0],
    "category_favourite_share_365d": [0.6667, 0.6667, 1, 1, 1, 1, 0.6667, N, 1],
    # Launches: P1 on 26 May, P4 on 4 July, P2 on 22 November; P3 is of the data's first day.
    "new_launch_share_365d": [2 / 7, 0, 0, 0, 1, 0, 0, N, 0],
    "unit_price_median_365d": [200, 90, 68, 125, 400, 59, 100, N, 80],
    # List unit prices: skincare 90, 3 x 100, 105, 2 x 120, 130, 200, 260, 300; daily 59, 5 x 100,
    # 180, 200; makeup 75, 85, 88, 400.
    "price_percentile_365d": [
        (37 / 11 + 14 / 8) / 7,
        (0.5 / 11 + 4.5 / 11 + 3.5 / 8) / 3,
        *(2.5 / 4, (6 + 7.5) / 22, 3.5 / 4, 0.5 / 8),
        (4 * 3.5 / 8 + 2 * 2.5 / 11) / 6,
        *(N, 0.25),
    ],
    "basket_units_mean_365d": [8 / 6, 4 / 3, 1, 1, 1, 1, 1, N, 1],
    "discount_depth_mean_365d": [(60 / 300 + 50 / 200) / 2, 50 / 210, 20 / 88, *[N] * 6],
    "full_price_orders_365d": [4, 2, 0, 2, 1, 1, 6, 0, 2],
    "threshold_hugging_share_365d": [N, 1, *[N] * 7],
    "kind_share_threshold_off_365d": [0, 1, 0, *[N] * 6],
    "kind_share_percent_off_365d": [0.5, 0, 0, *[N] * 6],
    "kind_share_nth_item_365d": [0.5, 0, 0, *[N] * 6],
    "kind_share_points_365d": [0, 0, 0, *[N] * 6],
    "kind_share_gift_365d": [0, 0, 0, *[N] * 6],
    "kind_share_fixed_off_365d": [0, 0, 0, *[N] * 6],
    "online_order_share_365d": [0.6667, 1, 1, 1, 1, 1, 1, N, 1],
    "mobile_payment_share_365d": [0.6667, 1, 1, 1, 1, 1, 1, N, 1],
    "clv_frequency_days": [5, 2, 0, 1, 0, 0, 4, 0, 1],
    "clv_recency_days": [290, 60, 0, 60, 0, 0, 120, N, 15],
    # From 1 January: the first orders were on 7 March, and within the last half year.
    "anniversary_distance_days": [65, 100, 10, 150, 181, 45, 140, N, 20],
}
EXPECTED_TEXT: dict[str, list[str | None]] = {
    "kind_favourite_365d": ["nth_item", "threshold_off", "first_order", N, N, N, N, N, N],
    "category_favourite_365d": [
        *("skincare", "skincare", "makeup", "skincare", "makeup", "daily", "daily", N, "makeup"),
    ],
    "channel_favourite_365d": [*["app"] * 7, N, "app"],
    "daypart_favourite_365d": [
        *("lunch", "evening", "night", "morning", "afternoon", "afternoon", "lunch", N, "night"),
    ],
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
