//! A policy → what clients read. Secret values never appear.
//!
//! The vendor's read form has no place for the order of rules of different kinds, for their `match` in every case, for
//! responses, and for our extensions. Where something would be lost, `hutch.policy` beside it carries the policy in the
//! request form. Compiling what was read back, with the policy itself as the previous one, gives the same policy.

use zeroize::Zeroizing;

use crate::json::Json;
use crate::policy::{Defaults, DnsMode, Inspect, Mode, Policy, Unmatched};
use crate::rules::{Action, Rule, limits_to_json};

impl Policy {
    /// The read form as JSON text.
    pub fn read_back(&self) -> String {
        let summary = self.summary();
        if self.is_plain() {
            return summary.to_text();
        }
        let Json::Object(mut members) = summary else {
            return summary.to_text();
        };
        members.push((
            "hutch".to_owned(),
            Json::object([Some(("policy", self.request_form(false)))]),
        ));
        Json::Object(members).to_text()
    }

    /// The request form as JSON text, secret values included. For storage under seal and for the gateway, never to be shown;
    /// compiling it gives the same policy, values and all.
    pub fn request_text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.request_form(true).to_text())
    }

    /// Whether the vendor's form says everything.
    fn is_plain(&self) -> bool {
        self.entries.iter().all(|entry| entry.rules.is_empty())
            && self.defaults == Defaults::default()
            && self.limits == crate::Limits::default()
            && self.dns_mode == DnsMode::Real
            && self.dns_open.is_none()
            && self.blocked.is_empty()
    }

    /// The vendor's read form.
    pub(crate) fn summary(&self) -> Json {
        let mode = match self.mode {
            Mode::AllowAll => "allow-all",
            Mode::DenyAll => "deny-all",
            Mode::Custom => "custom",
        };
        let mut lists: [(&'static str, Vec<Json>); 6] = [
            (
                "allowedDomains",
                self.entries
                    .iter()
                    .map(|entry| Json::text(entry.pattern.as_str()))
                    .collect(),
            ),
            (
                "allowedCIDRs",
                self.allow_ranges
                    .iter()
                    .map(|range| Json::text(range.to_string()))
                    .collect(),
            ),
            (
                "deniedCIDRs",
                self.deny_ranges
                    .iter()
                    .map(|range| Json::text(range.to_string()))
                    .collect(),
            ),
            ("injectionRules", Vec::new()),
            ("forwardRules", Vec::new()),
            ("responseRules", Vec::new()),
        ];
        for entry in &self.entries {
            for rule in &entry.rules {
                let (list, item) = summary_of(entry.pattern.as_str(), rule);
                lists[list].1.push(item);
            }
        }
        let lists = lists
            .into_iter()
            .map(|(name, items)| (!items.is_empty()).then_some((name, Json::Array(items))));
        Json::object([Some(("mode", Json::text(mode)))].into_iter().chain(lists))
    }

    /// The request form, with secret values only for fingerprints.
    pub(crate) fn request_form(&self, reveal: bool) -> Json {
        let mode = match self.mode {
            Mode::AllowAll => Some(("mode", Json::text("allow-all"))),
            Mode::DenyAll => Some(("mode", Json::text("deny-all"))),
            Mode::Custom => None,
        };
        let patterns = self.entries.iter().map(|entry| {
            let rules = entry.rules.iter().map(|rule| rule.to_json(reveal)).collect();
            (entry.pattern.as_str().to_owned(), Json::Array(rules))
        });
        let ranges = |name, ranges: &[crate::Cidr]| {
            (!ranges.is_empty()).then(|| (name, Json::texts(ranges.iter().map(ToString::to_string))))
        };
        let subnets = Json::object([ranges("allow", &self.allow_ranges), ranges("deny", &self.deny_ranges)]);
        Json::object([
            mode,
            (!self.entries.is_empty()).then(|| ("allow", Json::Object(patterns.collect()))),
            (subnets != Json::Object(Vec::new())).then_some(("subnets", subnets)),
            defaults_to_json(&self.defaults),
            limits_to_json(self.limits),
            self.dns_to_json(),
            (!self.blocked.is_empty()).then(|| ("block", Json::texts(self.blocked.iter().map(crate::Pattern::as_str)))),
        ])
    }

    fn dns_to_json(&self) -> Option<(&'static str, Json)> {
        let mode = (self.dns_mode == DnsMode::Virtual).then(|| ("mode", Json::text("virtual")));
        let open = self.dns_open.map(|open| ("open", Json::Bool(open)));
        (mode.is_some() || open.is_some()).then(|| ("dns", Json::object([mode, open])))
    }
}

fn defaults_to_json(defaults: &Defaults) -> Option<(&'static str, Json)> {
    let ports = |ports: &Vec<u16>| Json::Array(ports.iter().map(|&port| Json::number(port.into())).collect());
    (*defaults != Defaults::default()).then(|| {
        let members = [
            (defaults.inspect == Inspect::All).then(|| ("inspect", Json::text("all"))),
            (defaults.unmatched == Unmatched::Deny).then(|| ("unmatched", Json::text("deny"))),
            defaults.plaintext_http.then_some(("plaintextHttp", Json::Bool(true))),
            defaults.ports.as_ref().map(|list| ("ports", ports(list))),
        ];
        ("defaults", Json::object(members))
    })
}

/// The list of the read form that a rule belongs to, and its item there.
fn summary_of(domain: &str, rule: &Rule) -> (usize, Json) {
    let matcher = (!rule.matcher.is_always()).then(|| ("match", rule.matcher.to_json()));
    let domain = Some(("domain", Json::text(domain)));
    match &rule.action {
        Action::Transform(transform) => {
            let names = Json::texts(transform.headers.iter().map(|edit| edit.spelling.as_str()));
            (3, Json::object([domain, Some(("headerNames", names)), matcher]))
        }
        Action::Forward(url) => (
            4,
            Json::object([domain, Some(("forwardURL", Json::text(&url.text))), matcher]),
        ),
        Action::Respond(response) => {
            let status = Some(("statusCode", Json::number(response.status.into())));
            (5, Json::object([domain, status]))
        }
    }
}
