//! Domain patterns and the lookup of the most specific one.
//!
//! `api.test` covers itself; `*.test` covers names below `test` at any depth; an inner `*` covers exactly one label;
//! `*` alone covers every name. Of several patterns that cover a name the most specific wins: label by label from the
//! right, a literal label before an inner `*` before a leading `*`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

use crate::names::{Name, NameError, is_ldh};

/// Why text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternError {
    /// Without its wildcards it is not a name.
    Name(NameError),
    /// `*` as a part of a label.
    PartialWildcard,
    /// `*` as the last label.
    LastLabel,
    /// An international label that cannot be written in ASCII, or `xn--` that does not decode.
    International,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(NameError::Address) => f.write_str("is an IP address; addresses belong in `subnets.allow`"),
            Self::Name(error) => error.fmt(f),
            Self::PartialWildcard => f.write_str("has a `*` that is not a whole label"),
            Self::LastLabel => f.write_str("has a `*` as its last label"),
            Self::International => f.write_str("has a label that is not valid as an international name"),
        }
    }
}

/// A domain pattern in its one spelling.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Read a pattern; international labels become `xn--` labels.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self("*".into()));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut labels = Vec::new();
        for label in text.split('.') {
            labels.push(match label {
                "*" => "*".to_owned(),
                _ if label.contains('*') => return Err(PatternError::PartialWildcard),
                _ => ascii_label(label)?,
            });
        }
        if labels.last().is_some_and(|last| last == "*") {
            return Err(PatternError::LastLabel);
        }
        // A wildcard stands for at least one byte, which keeps the check of lengths honest.
        let sample: Vec<&str> = labels
            .iter()
            .map(|label| if label == "*" { "a" } else { label })
            .collect();
        let sample = sample.join(".");
        // The root's dot is gone. One more would make a pattern that covers no name, and a block that blocks nothing.
        if sample.ends_with('.') {
            return Err(PatternError::Name(NameError::EmptyLabel));
        }
        Name::host(sample.as_bytes()).map_err(PatternError::Name)?;
        Ok(Self(labels.join(".").to_ascii_lowercase().into()))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `*`.
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }

    /// The name that an exact pattern is.
    pub fn exact(&self) -> Option<Name> {
        if self.0.contains('*') {
            None
        } else {
            Name::host(self.0.as_bytes()).ok()
        }
    }

    /// Whether the pattern covers `name`. The reference for [`PatternMap`], and for single checks.
    pub fn covers(&self, name: &Name) -> bool {
        let wanted: Vec<&str> = self.0.split('.').rev().collect();
        let labels: Vec<&str> = name.labels().rev().collect();
        covers_labels(&wanted, &labels)
    }

    /// Whether every name that `other` covers is covered by this pattern too.
    pub fn includes(&self, other: &Self) -> bool {
        if self.is_any() {
            return true;
        }
        let wanted: Vec<&str> = self.0.split('.').rev().collect();
        let given: Vec<&str> = other.0.split('.').rev().collect();
        let (open, theirs_open) = (leads(&wanted), leads(&given));
        if !open {
            return !theirs_open && wanted.len() == given.len() && zip_includes(&wanted, &given);
        }
        // The labels right of ours must agree; what is left of theirs is one label or more.
        let fixed = &wanted[..wanted.len() - 1];
        given.len() > fixed.len() && zip_includes(fixed, &given[..fixed.len()])
    }

    /// Whether the pattern has a wildcard right above a public suffix (`*.com`, `*.co.uk`, `*.github.io`) or is `*`.
    pub fn is_broad(&self) -> bool {
        let Some((_, suffix)) = self.0.rsplit_once('*') else {
            return false;
        };
        let suffix = suffix.trim_start_matches('.');
        // Every top-level label counts, also those that the list does not know.
        !suffix.contains('.') || psl::suffix_str(suffix) == Some(suffix)
    }

    /// Which of two patterns that cover one name is the more specific one (`Greater`).
    pub fn compare_specificity(&self, other: &Self) -> Ordering {
        fn rank(labels: &[&str], index: usize) -> u8 {
            match labels.get(index) {
                None => 0,
                Some(&"*") if index + 1 == labels.len() => 1,
                Some(&"*") => 2,
                Some(_) => 3,
            }
        }
        // A lone or leading `*` may stand for many labels: it is the weakest at its place. A `*` that leads and an inner
        // one can meet at one place, hence the rank looks at whether it is the leftmost label.
        let ours: Vec<&str> = self.0.split('.').rev().collect();
        let theirs: Vec<&str> = other.0.split('.').rev().collect();
        (0..ours.len().max(theirs.len()))
            .map(|index| rank(&ours, index).cmp(&rank(&theirs, index)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

fn leads(reversed: &[&str]) -> bool {
    reversed.last() == Some(&"*")
}

fn zip_includes(wanted: &[&str], given: &[&str]) -> bool {
    wanted
        .iter()
        .zip(given)
        .all(|(want, label)| *want == "*" || want == label)
}

fn covers_labels(wanted: &[&str], labels: &[&str]) -> bool {
    let (fixed, enough) = if leads(wanted) {
        let fixed = &wanted[..wanted.len() - 1];
        (fixed, labels.len() > fixed.len())
    } else {
        (wanted, labels.len() == wanted.len())
    };
    enough && zip_includes(fixed, labels)
}

fn ascii_label(label: &str) -> Result<String, PatternError> {
    let punycode = label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("xn--"));
    if label.is_ascii() && !punycode {
        return if is_ldh(label) {
            Ok(label.to_owned())
        } else {
            Err(PatternError::Name(NameError::NotLdh))
        };
    }
    let ascii = Uts46::new()
        .to_ascii(
            label.as_bytes(),
            AsciiDenyList::STD3,
            Hyphens::CheckFirstLast,
            DnsLength::Verify,
        )
        .map_err(|_| PatternError::International)?;
    // Ideographic full stops become dots: a label must stay one.
    if ascii.contains('.') || ascii.contains('*') {
        return Err(PatternError::International);
    }
    Ok(ascii.into_owned())
}

/// Values by pattern. A lookup walks the labels of the name from the right, so that its cost depends on the name and
/// not on how many patterns there are.
#[derive(Debug, Clone)]
pub struct PatternMap<T> {
    nodes: Vec<Node<T>>,
    any: Option<T>,
}

#[derive(Debug, Clone)]
struct Node<T> {
    children: HashMap<Box<str>, usize>,
    one_label: Option<usize>,
    exact: Option<T>,
    below: Option<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            children: HashMap::new(),
            one_label: None,
            exact: None,
            below: None,
        }
    }
}

impl<T> Default for PatternMap<T> {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            any: None,
        }
    }
}

impl<T> PatternMap<T> {
    /// Add a value; gives back the one that the same pattern had.
    pub fn insert(&mut self, pattern: &Pattern, value: T) -> Option<T> {
        if pattern.is_any() {
            return self.any.replace(value);
        }
        let mut labels: Vec<&str> = pattern.0.split('.').collect();
        let below = labels[0] == "*";
        if below {
            labels.remove(0);
        }
        let mut at = 0;
        for label in labels.into_iter().rev() {
            at = self.child(at, label);
        }
        let node = &mut self.nodes[at];
        if below {
            node.below.replace(value)
        } else {
            node.exact.replace(value)
        }
    }

    fn child(&mut self, at: usize, label: &str) -> usize {
        let next = self.nodes.len();
        let found = if label == "*" {
            *self.nodes[at].one_label.get_or_insert(next)
        } else {
            *self.nodes[at].children.entry(label.into()).or_insert(next)
        };
        if found == next {
            self.nodes.push(Node::default());
        }
        found
    }

    /// The value of the most specific pattern that covers `name`.
    pub fn get(&self, name: &Name) -> Option<&T> {
        self.walk(0, name.as_str()).or(self.any.as_ref())
    }

    /// The value of `*`.
    pub fn any(&self) -> Option<&T> {
        self.any.as_ref()
    }

    /// `rest`: the labels that are not consumed yet, without the dot at the end.
    fn walk(&self, at: usize, rest: &str) -> Option<&T> {
        let node = &self.nodes[at];
        let (rest, label) = rest.rsplit_once('.').map_or(("", rest), |(rest, label)| (rest, label));
        for next in [node.children.get(label).copied(), node.one_label]
            .into_iter()
            .flatten()
        {
            let found = if rest.is_empty() {
                self.nodes[next].exact.as_ref()
            } else {
                self.walk(next, rest)
            };
            if found.is_some() {
                return found;
            }
        }
        node.below.as_ref()
    }
}
