//! Whether a live object still is what is wanted.
//!
//! Compares only the fields that are wanted: what the API server fills in and what others own is nobody's business
//! here. A field that is no longer wanted shows through the hash of the wanted object, kept in an annotation.
//! Invariant: an object just applied does not differ, or the operator would write for ever.

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::names::APPLIED_ANNOTATION;

/// A hash that depends on the content alone, not on the order of keys.
pub fn hash(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in entries {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string());
        }
    }
}

/// Writes the wanted object's own hash into its annotations.
pub fn stamp(wanted: &mut Value) {
    let hash = hash(wanted);
    if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(APPLIED_ANNOTATION.to_owned(), Value::from(hash));
        }
    }
}

/// True if applying `wanted` (stamped) would change `live`.
pub fn differs(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            wanted.iter().any(|(key, value)| differs_in(key, value, live.get(key)))
        }
        (Value::Array(wanted), Value::Array(live)) => lists_differ(wanted, live),
        (wanted, live) => wanted != live,
    }
}

fn differs_in(key: &str, wanted: &Value, live: Option<&Value>) -> bool {
    match live {
        // The API server drops what is empty.
        None => !is_empty(wanted),
        // Written by people as they like, stored in one canonical form.
        Some(live) if key == "requests" || key == "limits" => quantities_differ(wanted, live),
        Some(live) => differs(wanted, live),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Lists whose items have a key are merged by the API server, and others may add items; all else is compared as a
/// whole.
fn lists_differ(wanted: &[Value], live: &[Value]) -> bool {
    for key in ["name", "mountPath", "uid"] {
        if !wanted.is_empty() && wanted.iter().all(|item| item.get(key).is_some()) {
            let find = |item: &Value| live.iter().find(|other| other.get(key) == item.get(key)).cloned();
            return wanted.iter().any(|item| find(item).is_none_or(|other| differs(item, &other)));
        }
    }
    wanted.len() != live.len() || wanted.iter().zip(live).any(|(wanted, live)| differs(wanted, live))
}

fn quantities_differ(wanted: &Value, live: &Value) -> bool {
    let (Some(wanted), Some(live)) = (wanted.as_object(), live.as_object()) else {
        return differs(wanted, live);
    };
    wanted
        .iter()
        .any(|(key, value)| live.get(key).is_none_or(|live| value != live && !same_quantity(value, live)))
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => milli(a).is_some_and(|a| milli(b) == Some(a)),
        _ => false,
    }
}

/// A quantity in bytes, rounded down; `None` for other text.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    u64::try_from(milli(text)? / 1_000).ok()
}

/// A quantity in thousandths, or `None` for other text. Finer parts than that are not told apart.
fn milli(text: &str) -> Option<i128> {
    const SUFFIXES: [(&str, i128); 13] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("m", 0),
    ];
    let suffix = SUFFIXES.into_iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)));
    let (number, factor) = suffix.unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nano = whole.parse::<i128>().ok()?.checked_mul(1_000_000_000)?.checked_add(digits.parse().ok()?)?;
    match factor {
        0 => Some(nano / 1_000_000_000),
        factor => nano.checked_mul(factor).map(|nano| nano / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_wanted_fields_count() {
        for (wanted, live, expected) in [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!({"a": 1}), json!({"a": 2}), true),
            (json!({"a": {"b": "x"}}), json!({}), true),
            (json!({"a": {"b": ""}, "c": [], "d": null}), json!({}), false),
            (json!({"a": false}), json!({}), true),
            (json!({"l": [1, 2]}), json!({"l": [1, 2, 3]}), true),
            (
                json!({"l": [{"name": "x"}]}),
                json!({"l": [{"name": "injected"}, {"name": "x", "more": 1}]}),
                false,
            ),
            (json!({"l": [{"name": "x", "v": 1}]}), json!({"l": [{"name": "x", "v": 2}]}), true),
            (json!({"l": [{"name": "x"}]}), json!({"l": []}), true),
        ] {
            assert_eq!(differs(&wanted, &live), expected, "{wanted} {live}");
        }
    }

    #[test]
    fn quantities_are_compared_by_value() {
        for (wanted, live, expected) in [
            ("1000m", "1", false),
            ("0.5", "500m", false),
            ("1024Mi", "1Gi", false),
            ("1.5Gi", "1536Mi", false),
            ("1G", "1Gi", true),
            ("2", "1", true),
            ("x", "y", true),
        ] {
            let with = |quantity: &str| json!({"limits": {"cpu": quantity}});
            assert_eq!(differs(&with(wanted), &with(live)), expected, "{wanted} {live}");
        }
    }

    #[test]
    fn the_hash_ignores_the_order_of_keys_and_nothing_else() {
        let text = |text: &str| hash(&serde_json::from_str(text).unwrap());
        assert_eq!(text(r#"{"a":1,"b":[1,2]}"#), text(r#"{"b":[1,2],"a":1}"#));
        assert_ne!(text(r#"{"a":1,"b":[1,2]}"#), text(r#"{"a":1,"b":[2,1]}"#));
        assert_ne!(text(r#"{"a":"1"}"#), text(r#"{"a":1}"#));
    }
}
