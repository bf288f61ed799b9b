//! JSON from Python.

use std::collections::HashMap;

use hutch_policy::{Cidr, HardDeny, HardDenySettings, PolicyError};
use serde_json::value::RawValue;

/// The code of what is wrong with anything but a policy.
const BAD_REQUEST: &str = "bad_request";

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) pointer: String,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            code: BAD_REQUEST,
            message: message.into(),
        }
    }
}

impl From<PolicyError> for Refusal {
    fn from(error: PolicyError) -> Self {
        Self {
            pointer: error.pointer,
            code: error.code,
            message: error.message,
        }
    }
}

/// An object whose members are still text. `null` is absent.
pub(crate) struct Fields(HashMap<String, Box<RawValue>>);

impl Fields {
    pub(crate) fn read(json: &[u8]) -> Result<Self, Refusal> {
        let mut members: HashMap<String, Box<RawValue>> = serde_json::from_slice(json)
            .map_err(|error| Refusal::new("", format!("should be a JSON object: {error}")))?;
        members.retain(|_, value| value.get() != "null");
        Ok(Self(members))
    }

    /// The text of a member.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.get())
    }

    /// The text of each item of a list; empty where there is none.
    pub(crate) fn items(&self, name: &str) -> Result<Vec<Box<RawValue>>, Refusal> {
        let items = self.get(name, "an array", |raw| serde_json::from_str(raw))?;
        Ok(items.unwrap_or_default())
    }

    /// A list of text; empty where there is none.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let texts = self.get(name, "an array of strings", |raw| serde_json::from_str(raw))?;
        Ok(texts.unwrap_or_default())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        self.get(name, "a string", |raw| serde_json::from_str(raw))
    }

    pub(crate) fn flags(&self, name: &str) -> Result<HashMap<String, bool>, Refusal> {
        let flags = self.get(name, "an object of true and false", |raw| serde_json::from_str(raw))?;
        Ok(flags.unwrap_or_default())
    }

    /// An object of strings in no order, or a list of pairs.
    pub(crate) fn pairs(&self, name: &str) -> Result<Vec<(String, String)>, Refusal> {
        let read = |raw: &str| {
            serde_json::from_str(raw)
                .or_else(|_| serde_json::from_str::<HashMap<_, _>>(raw).map(|map| map.into_iter().collect()))
        };
        let pairs = self.get(name, "an array of pairs, or an object, of strings", read)?;
        Ok(pairs.unwrap_or_default())
    }

    fn get<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl Fn(&str) -> serde_json::Result<T>,
    ) -> Result<Option<T>, Refusal> {
        self.raw(name)
            .map(read)
            .transpose()
            .map_err(|_| Refusal::new(format!("/{name}"), format!("should be {kind}")))
    }
}

/// What the operator says, and the policies that bound a tenant's.
pub(crate) struct Settings {
    pub(crate) hard_deny: HardDeny,
    /// Texts of policies.
    pub(crate) bounds: Vec<Box<RawValue>>,
}

impl Settings {
    pub(crate) fn read(json: &[u8]) -> Result<Self, Refusal> {
        let fields = Fields::read(json)?;
        let ranges = |name: &str| {
            let parse = |(index, text): (usize, &String)| {
                Cidr::parse(text).map_err(|error| Refusal::new(format!("/{name}/{index}"), error.to_string()))
            };
            fields
                .texts(name)?
                .iter()
                .enumerate()
                .map(parse)
                .collect::<Result<Vec<_>, _>>()
        };
        let address = |(index, text): (usize, &String)| {
            text.parse()
                .map_err(|_| Refusal::new(format!("/own/{index}"), "should be an IP address"))
        };
        let settings = HardDenySettings {
            allow_private: ranges("allow_private")?,
            own: fields
                .texts("own")?
                .iter()
                .enumerate()
                .map(address)
                .collect::<Result<_, _>>()?,
            sandbox_pools: ranges("sandbox_pools")?,
        };
        let hard_deny = HardDeny::new(&settings).map_err(|range| {
            let index = settings.allow_private.iter().position(|other| *other == range);
            Refusal::new(
                format!("/allow_private/{}", index.unwrap_or_default()),
                "should NOT lie wholly in addresses that can never be opened",
            )
        })?;
        Ok(Self {
            hard_deny,
            bounds: fields.items("bounds")?,
        })
    }
}

/// The set that closes least. Policies that were compiled before are read again with it: what was valid under the settings
/// of then must not be invalid because an operator has closed something since.
pub(crate) fn widest_hard_deny() -> HardDeny {
    let everything = ["0.0.0.0/0", "::/0"].map(|range| Cidr::parse(range).expect("a constant range"));
    HardDeny::new(&HardDenySettings {
        allow_private: everything.to_vec(),
        ..HardDenySettings::default()
    })
    .expect("everything is more than what is always closed")
}
