//! JSON that keeps the order of its members and notices repeated ones, read through cursors that know where they are.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::compile::PolicyError;
use crate::defence::Defence;

/// A value. There is no `Debug`, because policies carry secrets.
#[derive(Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    pub(crate) fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::Array(texts.into_iter().map(Self::text).collect())
    }

    pub(crate) fn number(number: u64) -> Self {
        Self::Number(number.into())
    }

    /// An object of the members that are there.
    pub(crate) fn object(members: impl IntoIterator<Item = Option<(&'static str, Json)>>) -> Self {
        Self::Object(
            members
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    /// The value with the members of every object in order of their names: equal meaning, equal bytes.
    pub(crate) fn sorted(&self) -> Self {
        match self {
            Self::Array(items) => Self::Array(items.iter().map(Self::sorted).collect()),
            Self::Object(members) => {
                let mut members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| (name.clone(), value.sorted()))
                    .collect();
                members.sort_by(|(one, _), (other, _)| one.cmp(other));
                Self::Object(members)
            }
            other => other.clone(),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).expect("every value of this type is JSON")
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => value.serialize(serializer),
            Self::String(value) => serializer.serialize_str(value),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::text(value))
            }

            fn visit_string<E>(self, value: String) -> Result<Json, E> {
                Ok(Json::String(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Json::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = access.next_entry()? {
                    members.push(member);
                }
                Ok(Json::Object(members))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

/// A value and the JSON pointer of where it stands.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    pub(crate) value: &'a Json,
    pub(crate) pointer: String,
}

impl<'a> Node<'a> {
    pub(crate) fn root(value: &'a Json) -> Self {
        Self {
            value,
            pointer: String::new(),
        }
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> PolicyError {
        PolicyError::new(self.pointer.clone(), message)
    }

    fn member(&self, name: &str, value: &'a Json) -> Self {
        let token = name.replace('~', "~0").replace('/', "~1");
        Self {
            value,
            pointer: format!("{}/{token}", self.pointer),
        }
    }

    /// The members of an object in order; repeated names are refused, because readers differ on which one counts.
    pub(crate) fn members(&self) -> Result<Vec<(&'a str, Self)>, PolicyError> {
        let Json::Object(members) = self.value else {
            return Err(self.error("should be an object"));
        };
        let mut seen = std::collections::HashSet::new();
        members
            .iter()
            .map(|(name, value)| {
                let node = self.member(name, value);
                if seen.insert(name) {
                    Ok((name.as_str(), node))
                } else {
                    Err(node.error("should NOT be repeated"))
                }
            })
            .collect()
    }

    /// The members of an object that may have only these names. `null` is absent.
    pub(crate) fn fields(&self, known: &[&str]) -> Result<Fields<'a>, PolicyError> {
        let mut members = self.members()?;
        for (name, node) in &members {
            if !known.contains(name) && Defence::KnownMembers.holds() {
                return Err(node.error(format!("is not known here; known are {}", known.join(", "))));
            }
        }
        members.retain(|(_, node)| *node.value != Json::Null);
        Ok(Fields {
            members,
            owner: self.clone(),
        })
    }

    /// The items of an array of at most `limit`.
    pub(crate) fn items(&self, limit: usize) -> Result<Vec<Self>, PolicyError> {
        let Json::Array(items) = self.value else {
            return Err(self.error("should be an array"));
        };
        if items.len() > limit {
            return Err(self.error(format!("should NOT have more than {limit} items")));
        }
        let item = |(index, value)| Self {
            value,
            pointer: format!("{}/{index}", self.pointer),
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    pub(crate) fn string(&self) -> Result<&'a str, PolicyError> {
        match self.value {
            Json::String(text) => Ok(text),
            _ => Err(self.error("should be a string")),
        }
    }

    pub(crate) fn boolean(&self) -> Result<bool, PolicyError> {
        match self.value {
            Json::Bool(value) => Ok(*value),
            _ => Err(self.error("should be true or false")),
        }
    }

    pub(crate) fn integer(&self, from: u64, to: u64) -> Result<u64, PolicyError> {
        let value = match self.value {
            Json::Number(number) => number.as_u64().filter(|value| (from..=to).contains(value)),
            _ => None,
        };
        value.ok_or_else(|| self.error(format!("should be an integer from {from} to {to}")))
    }

    /// One of some words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, PolicyError> {
        let text = self.string()?;
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let words: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                self.error(format!("should be {}", words.join(" or ")))
            })
    }
}

/// The members of an object that are not `null`.
pub(crate) struct Fields<'a> {
    members: Vec<(&'a str, Node<'a>)>,
    pub(crate) owner: Node<'a>,
}

impl<'a> Fields<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.members
            .iter()
            .find(|(member, _)| *member == name)
            .map(|(_, node)| node)
    }

    pub(crate) fn need(&self, name: &str) -> Result<&Node<'a>, PolicyError> {
        self.get(name)
            .ok_or_else(|| self.owner.error(format!("should have `{name}`")))
    }

    /// The items of an array that may be absent.
    pub(crate) fn items(&self, name: &str, limit: usize) -> Result<Vec<Node<'a>>, PolicyError> {
        self.get(name).map_or(Ok(Vec::new()), |node| node.items(limit))
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, PolicyError> {
        self.get(name).map(Node::boolean).transpose()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.members.iter().map(|(name, _)| *name)
    }
}
