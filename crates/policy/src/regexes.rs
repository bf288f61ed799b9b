//! Regular expressions with the guarantees of RE2: time linear in the input, memory bounded for the whole policy.
//!
//! The `regex` crate gives the first; syntax that it reads otherwise than RE2 is refused, so that an expression never
//! means one thing at the vendor and another one here. Matching is on bytes and unanchored, classes such as `\d` are ASCII.

use std::collections::HashMap;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, visit};

/// Bytes of one expression.
pub(crate) const MAX_REGEX_BYTES: usize = 1024;
/// Sizes that an expression is tried with; it is charged the first one that suffices.
const SIZES_BYTES: [usize; 4] = [8 << 10, 32 << 10, 128 << 10, 512 << 10];
/// The charges of all distinct expressions of one policy together.
const MAX_TOTAL_BYTES: usize = 16 << 20;
const MAX_NESTING: u32 = 64;
/// RE2's own bound on counted repetition.
const MAX_REPEAT: u32 = 1000;

/// The expressions of one policy.
#[derive(Default)]
pub(crate) struct Regexes {
    known: HashMap<(String, bool), Arc<Regex>>,
    charged_bytes: usize,
}

impl Regexes {
    /// Compile an expression. The error is the end of a sentence.
    pub(crate) fn compile(&mut self, pattern: &str, ignore_case: bool) -> Result<Arc<Regex>, String> {
        if pattern.len() > MAX_REGEX_BYTES {
            return Err(format!("should NOT have more than {MAX_REGEX_BYTES} bytes"));
        }
        let key = (pattern.to_owned(), ignore_case);
        if let Some(regex) = self.known.get(&key) {
            return Ok(Arc::clone(regex));
        }
        check_syntax(pattern)?;
        for size in SIZES_BYTES {
            if self.charged_bytes + size > MAX_TOTAL_BYTES {
                return Err("makes the expressions of this policy too large together".to_owned());
            }
            let built = RegexBuilder::new(pattern)
                .unicode(false)
                .case_insensitive(ignore_case)
                .nest_limit(MAX_NESTING)
                .size_limit(size)
                .dfa_size_limit(SIZES_BYTES[3])
                .build();
            match built {
                Ok(regex) => {
                    self.charged_bytes += size;
                    let regex = Arc::new(regex);
                    self.known.insert(key, Arc::clone(&regex));
                    return Ok(regex);
                }
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(error) => return Err(unsupported(&error.to_string())),
            }
        }
        Err("is too large as a regular expression".to_owned())
    }
}

fn unsupported(error: &str) -> String {
    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("should be a regular expression of RE2: {reason}")
}

fn check_syntax(pattern: &str) -> Result<(), String> {
    let ast = ast::parse::ParserBuilder::new()
        .nest_limit(MAX_NESTING)
        .build()
        .parse(pattern)
        .map_err(|error| unsupported(&error.kind().to_string()))?;
    visit(&ast, Differences { pattern }).map_err(unsupported)
}

/// Finds what RE2 does not know or reads otherwise.
struct Differences<'a> {
    pattern: &'a str,
}

impl Differences<'_> {
    fn flags(flags: &ast::Flags) -> Result<(), &'static str> {
        let known = |item: &ast::FlagsItem| match item.kind {
            ast::FlagsItemKind::Negation => true,
            ast::FlagsItemKind::Flag(flag) => matches!(
                flag,
                ast::Flag::CaseInsensitive | ast::Flag::MultiLine | ast::Flag::DotMatchesNewLine | ast::Flag::SwapGreed
            ),
        };
        if flags.items.iter().all(known) {
            Ok(())
        } else {
            Err("a flag that is not one of i, m, s, U")
        }
    }
}

impl ast::Visitor for Differences<'_> {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), &'static str> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), &'static str> {
        match ast {
            Ast::Flags(set) => Self::flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => Self::flags(flags),
                _ => Ok(()),
            },
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::StartText
                | ast::AssertionKind::EndText
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("a word boundary that is not \\b or \\B"),
            },
            Ast::Repetition(repetition) => {
                let span = &repetition.op.span;
                let text = &self.pattern[span.start.offset..span.end.offset];
                if text.starts_with("{,") || text.contains(' ') {
                    return Err("a repetition that is not {n}, {n,} or {n,m}");
                }
                let most = match &repetition.op.kind {
                    ast::RepetitionKind::Range(ast::RepetitionRange::Exactly(n)) => *n,
                    ast::RepetitionKind::Range(ast::RepetitionRange::AtLeast(n)) => *n,
                    ast::RepetitionKind::Range(ast::RepetitionRange::Bounded(_, n)) => *n,
                    _ => 0,
                };
                if most > MAX_REPEAT {
                    Err("a repetition of more than 1000")
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), &'static str> {
        match item {
            ast::ClassSetItem::Bracketed(_) => Err("a class within a class"),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), &'static str> {
        Err("an operation on classes")
    }
}
