"""What is guessed of columns by what they hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vista.data.logs.guessing import guess

DONE = [
    ["view", "buy"], ["listen", "like", "dislike", "unlike", "undislike"], ["pv", "buy", "cart", "fav"],
    ["item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp"],
    ["view", "addtocart", "transaction"], ["clicks", "carts", "orders"], ["VIEW"], ["AddToCart", "Purchased"],
    ["clickout item", "interaction item image", "search for item"], ["Ansehen", "Kaufen"], ["achat", "vue", "panier"],
    ["is_click", "is_like", "long_view", "is_forward"], ["page.view", "page.leave", "shared"], ["beğeni", "sepet"],
]  # fmt: skip
ELSE = {
    "city": ["Berlin", "Köln", "Reading"], "where": ["Berlin", "Paris"], "land": ["DE", "FR"], "country": ["US", "IN"],
    "device": ["mobile", "desktop", "tablet"], "app": ["iOS", "Android"], "category": ["Books", "Watches", "Play"],
    "kind_of": ["phones", "watches", "shoes"], "brand": ["Best Buy", "Target"], "status": ["ordered", "returned"],
    "from_page": ["home", "cart", "checkout"], "paid_by": ["card", "cash"], "plan": ["free", "premium"],
    "traffic": ["direct", "mail", "share"], "colour": ["red", "blue"], "free_text": [f"view {n}" for n in range(20)],
    "quantity": [1, 2, 3], "day": ["Mon", "Tue"], "tags": [["view"], ["buy"]], "nothing": [None, ""], "x": ["a", "b"],
}  # fmt: skip


def said(columns: dict, order) -> tuple[dict, dict]:
    n = 20
    logs = {"user": [f"u{k % 7}" for k in range(n)], "sku": [f"s{k}" for k in range(n)]}
    logs["at"] = [f"2024-01-02T03:04:{k:02}" for k in range(n)]
    logs |= {name: [values[k % len(values)] for k in range(n)] for name, values in columns.items()}
    found = guess({name: logs[name] for name in order(list(logs))})
    return found.reading.to_json(), found.why


@pytest.mark.parametrize("words", DONE, ids=" ".join)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_column_of_words_for_actions_is_one_whatever_its_name_and_place(words, data):
    beside = data.draw(st.sets(st.sampled_from(sorted(ELSE)), max_size=3))
    named = data.draw(st.sampled_from(["what", "did", "col_7", "Vorgang", "op"]))
    reading, why = said(
        {**{k: ELSE[k] for k in sorted(beside)}, named: words}, lambda n: data.draw(st.permutations(n))
    )
    assert reading["columns"]["action"] == named and "action_is" not in reading
    assert why["action"].startswith(f"{named} holds words for actions: ")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_column_of_a_few_words_for_something_else_is_no_action(data):
    beside = data.draw(st.sets(st.sampled_from(sorted(ELSE)), min_size=1, max_size=5))
    reading, _ = said({k: ELSE[k] for k in sorted(beside)}, lambda n: data.draw(st.permutations(n)))
    assert reading["action_is"] == "view" and "action" not in reading.get("columns", {})
