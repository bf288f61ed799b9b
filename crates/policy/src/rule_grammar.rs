//! JSON → rules: the structure and everything that a rule alone can tell.

use crate::compile::{Compiler, PolicyError};
use crate::decide::path::inspect_path;
use crate::defence::Defence;
use crate::json::{Fields, Json, Node};
use crate::names::parse_authority;
use crate::policy::Limits;
use crate::rules::{
    Action, CredentialUse, ForwardUrl, HeaderEdit, Match, Matcher, Pair, QueryEdit, Response, Rule, RuleId, Secret,
    Test, Transform, Value,
};

/// Items of any one list or object within a rule.
const MAX_ITEMS: usize = 100;
/// Statuses whose responses have no body.
const BODILESS: [u64; 3] = [204, 205, 304];
const ACTIONS: [&str; 3] = ["transform", "forwardURL", "response"];
const RULE_FIELDS: [&str; 9] = [
    "match",
    "transform",
    "forwardURL",
    "response",
    "limits",
    "scrub",
    "allowEncodedSlash",
    "allowEmptySegments",
    "acknowledgeBroad",
];

impl Compiler<'_> {
    /// A rule of the request form.
    pub(crate) fn rule(&mut self, node: &Node) -> Result<Rule, PolicyError> {
        let fields = node.fields(&RULE_FIELDS)?;
        let actions: Vec<&str> = fields.names().filter(|name| ACTIONS.contains(name)).collect();
        let [action] = actions[..] else {
            return Err(node.error("should have exactly one of `transform`, `forwardURL` and `response`"));
        };
        let value = fields.need(action)?;
        let action = match action {
            "transform" => Action::Transform(transforms(value)?),
            "forwardURL" => Action::Forward(forward_url(value)?),
            _ => Action::Respond(response(value)?),
        };
        self.finish_rule(&fields, action)
    }

    /// An entry of `injectionRules`: a rule of the legacy form.
    pub(crate) fn injection_rule(&mut self, node: &Node) -> Result<Rule, PolicyError> {
        let fields = node.fields(&["domain", "headers", "match"])?;
        let mut transform = Transform::default();
        if let Some(headers) = fields.get("headers") {
            header_edits(headers, &mut transform)?;
        }
        self.finish_rule(&fields, Action::Transform(transform))
    }

    fn finish_rule(&mut self, fields: &Fields, action: Action) -> Result<Rule, PolicyError> {
        let matcher = fields
            .get("match")
            .map(|node| self.matcher(node))
            .transpose()?
            .unwrap_or_default();
        Ok(Rule {
            // Known when the whole pattern is.
            id: RuleId([0; 8]),
            matcher,
            action,
            limits: limits(fields)?,
            scrub: fields.boolean("scrub")?,
            allow_encoded_slash: fields.boolean("allowEncodedSlash")?.unwrap_or(false),
            allow_empty_segments: fields.boolean("allowEmptySegments")?.unwrap_or(false),
            acknowledge_broad: fields.boolean("acknowledgeBroad")?.unwrap_or(false),
        })
    }

    fn matcher(&mut self, node: &Node) -> Result<Match, PolicyError> {
        let fields = node.fields(&["path", "method", "queryString", "headers"])?;
        let methods = match fields.get("method") {
            None => None,
            Some(list) => {
                let methods = list
                    .items(MAX_ITEMS)?
                    .iter()
                    .map(method)
                    .collect::<Result<Vec<_>, _>>()?;
                if methods.is_empty() {
                    return Err(list.error("should have at least one method"));
                }
                Some(methods)
            }
        };
        let path = fields.get("path").map(|node| self.test(node, false)).transpose()?;
        if let (Some(test), Some(node)) = (&path, fields.get("path")) {
            self.check_path_test(test, node);
        }
        Ok(Match {
            path,
            methods,
            query: self.pairs(&fields, "queryString", false)?,
            headers: self.pairs(&fields, "headers", true)?,
        })
    }

    fn check_path_test(&mut self, test: &Test, node: &Node) {
        match &test.matcher {
            Matcher::StartsWith(prefix) if !prefix.ends_with('/') => {
                let message = format!(
                    "also matches paths such as {:?}; end it with a slash if that is not meant",
                    {
                        let clipped: String = prefix.chars().take(64).collect();
                        clipped + "-other"
                    }
                );
                self.warn(node, "prefix_without_slash", message);
            }
            Matcher::Regex(text) if !text.starts_with('^') && !text.starts_with("\\A") => {
                self.warn(
                    node,
                    "regex_unanchored",
                    "matches anywhere in the path; start it with ^ if that is not meant",
                );
            }
            _ => {}
        }
    }

    fn pairs(&mut self, fields: &Fields, name: &str, is_header: bool) -> Result<Vec<Pair>, PolicyError> {
        let mut pairs = Vec::new();
        for node in fields.items(name, MAX_ITEMS)? {
            let fields = node.fields(&["key", "value"])?;
            pairs.push(Pair {
                key: fields.get("key").map(|node| self.test(node, is_header)).transpose()?,
                value: fields.get("value").map(|node| self.test(node, false)).transpose()?,
            });
        }
        Ok(pairs)
    }

    fn test(&mut self, node: &Node, ignore_case: bool) -> Result<Test, PolicyError> {
        let fields = node.fields(&["exact", "startsWith", "regex"])?;
        let names: Vec<&str> = fields.names().collect();
        let [name] = names[..] else {
            return Err(node.error("should have exactly one of `exact`, `startsWith` and `regex`"));
        };
        let value = fields.need(name)?;
        let text = value.string()?.to_owned();
        let (matcher, regex) = match name {
            "exact" => (Matcher::Exact(text), None),
            "startsWith" => (Matcher::StartsWith(text), None),
            _ => {
                let regex = self
                    .regexes
                    .compile(&text, ignore_case)
                    .map_err(|message| value.error(message))?;
                (Matcher::Regex(text), Some(regex))
            }
        };
        Ok(Test {
            matcher,
            regex,
            ignore_case,
        })
    }
}

/// The object `limits` of a policy or a rule.
pub(crate) fn limits(fields: &Fields) -> Result<Limits, PolicyError> {
    let Some(node) = fields.get("limits") else {
        return Ok(Limits::default());
    };
    let fields = node.fields(&["upBytes", "downBytes"])?;
    // 2^53 - 1, the largest integer that every JSON reader keeps.
    let bytes = |name| fields.get(name).map(|node| node.integer(0, (1 << 53) - 1)).transpose();
    Ok(Limits {
        up_bytes: bytes("upBytes")?,
        down_bytes: bytes("downBytes")?,
    })
}

fn method(node: &Node) -> Result<String, PolicyError> {
    let method = node.string()?;
    if method.len() > 64 || !is_token(method) {
        return Err(node.error("should be an HTTP method"));
    }
    Ok(method.to_owned())
}

fn transforms(node: &Node) -> Result<Transform, PolicyError> {
    let mut transform = Transform::default();
    for item in node.items(MAX_ITEMS)? {
        let fields = item.fields(&["headers", "queryString"])?;
        if let Some(headers) = fields.get("headers") {
            header_edits(headers, &mut transform)?;
        }
        for (name, value) in fields
            .get("queryString")
            .map(Node::members)
            .transpose()?
            .unwrap_or_default()
        {
            if name.is_empty() || transform.query.len() >= MAX_ITEMS {
                return Err(value.error(format!("should be one of at most {MAX_ITEMS} parameters with a name")));
            }
            let edit = QueryEdit {
                name: name.to_owned(),
                value: edit_value(&value)?,
            };
            transform.query.retain(|other| other.name != edit.name);
            transform.query.push(edit);
        }
    }
    Ok(transform)
}

fn header_edits(node: &Node, transform: &mut Transform) -> Result<(), PolicyError> {
    let mut seen: Vec<String> = Vec::new();
    for (spelling, value) in node.members()? {
        let name = spelling.to_ascii_lowercase();
        if !is_token(spelling) || spelling.len() > 256 {
            return Err(value.error("should have the name of a header"));
        }
        if seen.contains(&name) {
            return Err(value.error("should NOT repeat the name of a header in other letters"));
        }
        seen.push(name.clone());
        let edit = HeaderEdit {
            name,
            spelling: spelling.to_owned(),
            value: edit_value(&value)?,
        };
        transform.headers.retain(|other| other.name != edit.name);
        transform.headers.push(edit);
        if transform.headers.len() > MAX_ITEMS {
            return Err(value.error(format!("should be one of at most {MAX_ITEMS} headers")));
        }
    }
    Ok(())
}

fn edit_value(node: &Node) -> Result<Value, PolicyError> {
    if let Json::String(text) = node.value {
        check_header_value(node, text)?;
        return Ok(Value::Literal(Secret::new(text)));
    }
    if !matches!(node.value, Json::Object(_)) {
        return Err(node.error("should be a string, or an object with `credential`"));
    }
    let fields = node.fields(&["credential", "format", "placeholder"])?;
    let name = fields.need("credential")?;
    let text = name.string()?;
    if !is_word(text, 64, |byte| byte == b'-') {
        return Err(name.error("should be the name of a credential: 1 to 64 letters, digits, `_` and `-`"));
    }
    let format = match fields.get("format") {
        None => "{}",
        Some(node) => {
            let format = node.string()?;
            check_header_value(node, format)?;
            if format.matches("{}").count() + format.matches("{base64}").count() != 1 {
                return Err(node.error("should have exactly one `{}` or `{base64}`"));
            }
            format
        }
    };
    let placeholder = match fields.get("placeholder") {
        None => None,
        Some(node) => {
            let variable = node.string()?;
            if !is_word(variable, 128, |_| false) || variable.starts_with(|first: char| first.is_ascii_digit()) {
                return Err(node.error("should be the name of an environment variable"));
            }
            Some(variable.to_owned())
        }
    };
    Ok(Value::Credential(CredentialUse {
        name: text.to_owned(),
        format: format.to_owned(),
        placeholder,
    }))
}

fn forward_url(node: &Node) -> Result<ForwardUrl, PolicyError> {
    let text = node.string()?;
    let Some(rest) = text.strip_prefix("https://") else {
        return Err(node.error("should be an https:// URL"));
    };
    if rest.contains(['?', '#', '@']) {
        return Err(node.error("should NOT have user, password, query or fragment"));
    }
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (host, port) = parse_authority(authority.as_bytes())
        .map_err(|error| node.error(format!("should have a valid host; this one {error}")))?;
    if !path.is_empty() && inspect_path(path.as_bytes()).is_ambiguous() {
        return Err(node.error("should have a path with only one reading"));
    }
    Ok(ForwardUrl {
        text: text.to_owned(),
        host,
        port: port.unwrap_or(443),
        path: path.trim_end_matches('/').to_owned(),
    })
}

fn response(node: &Node) -> Result<Response, PolicyError> {
    let fields = node.fields(&["statusCode", "headers", "body", "contentType"])?;
    let status = fields.need("statusCode")?.integer(200, 599)?;
    let content_type = match fields.get("contentType") {
        None => None,
        Some(node) => {
            let text = node.string()?;
            check_header_value(node, text)?;
            Some(text.to_owned())
        }
    };
    let body = fields
        .get("body")
        .map(|node| node.string().map(str::to_owned))
        .transpose()?;
    if let Some(node) = fields.get("body") {
        if content_type.is_none() {
            return Err(node.error("should come with `contentType`"));
        }
        if BODILESS.contains(&status) {
            return Err(node.error(format!("should NOT be there with status {status}")));
        }
    }
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, value) in fields
        .get("headers")
        .map(Node::members)
        .transpose()?
        .unwrap_or_default()
    {
        let text = value.string()?;
        check_header_value(&value, text)?;
        if !is_token(name) || name.len() > 256 || headers.len() >= MAX_ITEMS {
            return Err(value.error(format!(
                "should be one of at most {MAX_ITEMS} headers with a valid name"
            )));
        }
        let framing = [
            "connection",
            "content-length",
            "transfer-encoding",
            "keep-alive",
            "upgrade",
            "trailer",
        ];
        if framing.iter().any(|other| name.eq_ignore_ascii_case(other)) {
            return Err(value.error("should NOT be there: the gateway sets the headers of the connection itself"));
        }
        let twice = content_type.is_some() && name.eq_ignore_ascii_case("content-type");
        if twice || headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return Err(value.error("should NOT repeat the name of a header"));
        }
        headers.push((name.to_owned(), text.to_owned()));
    }
    Ok(Response {
        status: status as u16,
        headers,
        body,
        content_type,
    })
}

fn check_header_value(node: &Node, text: &str) -> Result<(), PolicyError> {
    // Tabs are the only control characters that a field value may have.
    let is_line = text.len() <= 16 << 10 && !text.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f);
    if !is_line && Defence::ValueLines.holds() {
        return Err(node.error("should NOT have line breaks, control characters or more than 16384 bytes"));
    }
    Ok(())
}

fn is_word(text: &str, most: usize, more: impl Fn(u8) -> bool) -> bool {
    (1..=most).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || more(byte))
}

/// A token of HTTP: the name of a header or a method.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
