//! The one place that knows YAML: a file as a tree of values, and a value as a setting's type.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// A value as it was given.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// From the file: its YAML type counts.
    Yaml(Value),
    /// From the environment or a flag: text that is read as whatever the setting is.
    Text(String),
}

impl Raw {
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, String> {
        match self {
            Self::Yaml(value) => serde_yaml::from_value(value).map_err(|error| error.to_string()),
            Self::Text(text) => read_text(&text),
        }
    }
}

/// A text may be a string, any YAML, or a list with commas between its items.
fn read_text<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let as_string = || serde_yaml::from_value(Value::String(text.to_owned()));
    let as_list = || {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items = items.map(|item| Value::String(item.to_owned())).collect();
        serde_yaml::from_value(Value::Sequence(items))
    };
    as_string()
        .or_else(|_| serde_yaml::from_str(text))
        .or_else(|error| as_list().map_err(|_| error))
        .map_err(|error: serde_yaml::Error| error.to_string())
}

/// A default as `--help` shows it, on one line.
pub(super) fn show<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(serde_json::Value::Null) => "none".to_owned(),
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The leaves of a file, each with its dotted path. `is_leaf` tells which paths are settings: what lies below one
/// is its value.
pub(super) fn leaves(text: &str, is_leaf: impl Fn(&str) -> bool) -> Result<Vec<(String, Raw)>, String> {
    let tree: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    match tree {
        Value::Null => {}
        Value::Mapping(_) => collect(String::new(), tree, &is_leaf, &mut found),
        _ => return Err("it is not a mapping of settings".to_owned()),
    }
    Ok(found)
}

fn collect(path: String, value: Value, is_leaf: &impl Fn(&str) -> bool, found: &mut Vec<(String, Raw)>) {
    match value {
        Value::Mapping(mapping) if !is_leaf(&path) => {
            for (key, value) in mapping {
                let key = match key {
                    Value::String(key) => key,
                    other => serde_yaml::to_string(&other).unwrap_or_default().trim_end().to_owned(),
                };
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                collect(path, value, is_leaf, found);
            }
        }
        other => found.push((path, Raw::Yaml(other))),
    }
}
