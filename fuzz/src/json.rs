//! Changes to JSON that keep it JSON.

use crate::random::Random;
use serde_json::{Map, Value};

/// Changes one place of a document; `texts` are strings that mean something in it.
pub fn change(value: &mut Value, r: &mut Random, texts: &[&str]) {
    match value {
        Value::Array(all) if !all.is_empty() => match r.below(12) {
            0 => drop(all.remove(r.below(all.len()))),
            1 if all.len() < 1000 => all.push(all[r.below(all.len())].clone()),
            2 => {
                let (a, b) = (r.below(all.len()), r.below(all.len()));
                all.swap(a, b);
            }
            _ => {
                let at = r.below(all.len());
                change(&mut all[at], r, texts);
            }
        },
        Value::Object(fields) if !fields.is_empty() => change_object(fields, r, texts),
        _ => *value = leaf(value, r, texts),
    }
}

fn change_object(fields: &mut Map<String, Value>, r: &mut Random, texts: &[&str]) {
    let key = fields.keys().nth(r.below(fields.len())).cloned();
    let other = fields.keys().nth(r.below(fields.len())).cloned();
    let (Some(key), Some(other)) = (key, other) else {
        return;
    };
    match r.below(40) {
        0 => drop(fields.remove(&key)),
        1 => {
            let value = fields[&other].clone();
            fields.insert(key, value);
        }
        2 => {
            let value = fields[&key].clone();
            fields.insert(format!("{key}2"), value);
        }
        _ => change(&mut fields[&key], r, texts),
    }
}

fn leaf(old: &Value, r: &mut Random, texts: &[&str]) -> Value {
    match (old, r.below(8)) {
        (_, 0) => Value::Null,
        (_, 1) => r.one_of(texts).into(),
        (_, 2) => r.integer().into(),
        (Value::Number(n), 3..=5) => {
            let near = n.as_i64().unwrap_or(0).wrapping_add(r.below(5) as i64 - 2);
            near.into()
        }
        (Value::Number(_), 6) => (r.number()).into(),
        (Value::Bool(b), _) => (!b).into(),
        (Value::String(_), _) => r.one_of(texts).into(),
        (_, _) => r.integer().into(),
    }
}
