//! The Jinja dialect of chat templates.
//!
//! Chat templates are written for, and tested with, transformers: Jinja2 with `trim_blocks` and `lstrip_blocks`, loop
//! controls, Python's string and list methods, and four additions (`raise_exception`, `strftime_now`, a `tojson` that is
//! `json.dumps`, `{% generation %}` blocks). One space too many gives the model a prompt it was never trained on, so this
//! environment reproduces those settings on `minijinja`.
//!
//! Templates come with downloaded models. They can only compute text: no file access, and a limit on the steps
//! ([`FUEL`]) ends an endless loop.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::GenerateError;

/// Steps a template may take; a conversation of a hundred messages needs some ten thousand.
const FUEL: u64 = 10_000_000;

/// Name under which the template is kept.
pub(super) const NAME: &str = "chat_template";

/// What `raise_exception` was called with; carried as the source of the template engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// An environment that holds `source` under [`NAME`].
///
/// # Errors
/// [`GenerateError::ChatTemplate`] for a syntax error.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, GenerateError> {
    let mut environment = Environment::new();
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| describe(&error))?;
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment
        .add_template_owned(NAME, without_generation_tags(source).into_owned())
        .map_err(|error| describe(&error))?;
    Ok(environment)
}

/// An error of the template engine in the terms of the user.
pub(super) fn describe(error: &Error) -> GenerateError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return GenerateError::ChatRefused { message: message.clone() };
        }
        source = cause.source();
    }
    GenerateError::ChatTemplate {
        line: error.line(),
        reason: match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        },
    }
}

/// `strftime_now(format)`: the time of `clock`, or the local time of the computer.
pub(super) fn strftime_now(clock: Option<jiff::Timestamp>) -> Value {
    Value::from_function(move |format: String| -> Result<String, Error> {
        let now = match clock {
            Some(time) => time.to_zoned_datetime(jiff::tz::TimeZone::UTC),
            None => jiff::ZonedDateTime::now(),
        };
        jiff::fmt::strtime::format(&format, &now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    })
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    options.assert_all_used()?;
    let text = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            dump(&value, PrettyFormatter::with_indent(indent.as_bytes()))?
        }
        None => dump(&value, PythonFormatter)?,
    };
    Ok(Value::from_safe_string(text))
}

fn dump(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let broken = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    let mut text = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut text, formatter))
        .map_err(|error| broken(error.to_string()))?;
    String::from_utf8(text).map_err(|error| broken(error.to_string()))
}

/// Python's separators: a space after each comma and colon.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `{% generation %}` .. `{% endgeneration %}` mark what an assistant said, for training; here they only group. They become
/// blocks that are always taken, with the same whitespace control.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        text.push_str(before);
        let Some(close) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let name = tag[..close].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replaced = match name {
            "generation" => tag[..close].replacen(name, "if true", 1),
            "endgeneration" => tag[..close].replacen(name, "endif", 1),
            _ => tag[..close].to_owned(),
        };
        text.push_str(&replaced);
        rest = &tag[close..];
    }
    text.push_str(rest);
    Cow::Owned(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    fn render(source: &str) -> Result<String, GenerateError> {
        let environment = environment(source)?;
        let context = Value::from_pairs([
            ("data", Value::from(Serde(serde_json::json!({"b": [1, 2.0, null], "a": {"k": "é<\"\n"}, "e": []})))),
            ("strftime_now", strftime_now(Some(jiff::Timestamp::UNIX_EPOCH))),
        ]);
        let template = environment.get_template(NAME).map_err(|error| describe(&error))?;
        template.render(context).map_err(|error| describe(&error))
    }

    /// Each expectation was made with Jinja2 3.1.6 and transformers' settings.
    #[test]
    fn renders_as_jinja2_does() {
        let cases = [
            ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
            ("{{ ' x '.strip() }}{{ 'ab'.startswith('a') }}{{ 'a,b'.split(',')[-1] }}", "xTrueb"),
            ("{{ none }} {{ false }}", "None False"),
            ("[{{ missing }}]{{ missing is defined }}", "[]False"),
            ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
            ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
            ("{{ data | tojson }}", r#"{"b": [1, 2.0, null], "a": {"k": "é<\"\n"}, "e": []}"#),
            ("{{ data.b | tojson(indent=2) }}", "[\n  1,\n  2.0,\n  null\n]"),
            ("{{ strftime_now('%d %b %Y') }}", "01 Jan 1970"),
            ("a{%- generation -%} b {%- endgeneration %}\nc", "abc"),
            ("a {% generation %}\nb{% endgeneration %} c", "a b c"),
            ("{{ messages }}{{ data.items() | list | length }}", "3"),
            ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}", "<a>"),
            ("{{ 'a' if data.zzz is not defined else 'b' }}{{ data['e'] | length }}", "a0"),
            ("{{ 'A' ~ 1 }}{{ 'x' * 3 }}{{ [1, 2, 3][1:] | join('-') }}", "A1xxx2-3"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    /// What templates of published models use, one feature a line. Expectations as above.
    #[test]
    fn features_in_use_work_as_in_jinja2() {
        let cases = [
            ("{% for m in [1,2,3][::-1] %}{{ m }}{% endfor %}", "321"),
            (
                "{{ 'x<think>\\na\\n</think>\\n\\nb'.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
                "a",
            ),
            (
                "{% for m in [1,1,2] %}{{ loop.previtem is defined and loop.previtem == m }}{{ loop.nextitem }}{% endfor %}",
                "False1True2False",
            ),
            ("{{ missing | default('d') }}{{ '' | default('e', true) }}", "de"),
            (
                "{{ [{'role':'system'},{'role':'user'}] | rejectattr('role', 'equalto', 'system') | list | length }}",
                "1",
            ),
            ("{{ 'a b  c'.split() }}", "['a', 'b', 'c']"),
            ("{{ {'a': none, 'b': true} }}", "{'a': None, 'b': True}"),
            ("{% macro f(a, b='x') -%} {{ a }}{{ b }} {%- endmacro %}{{ f(1) }}{{ f(1, b=2) }}", "1x12"),
            (
                "{% set ns = namespace(a=false, l=[]) %}{% set ns.l = ns.l + [1] %}{{ ns.l | length }}{{ ns.a }}",
                "1False",
            ),
            ("{{ 'x' if false }}|", "|"),
            ("{{ \"é\"|length }}{{ 'line1\\nline2'.splitlines() | length }}{{ 'a'.join(['1','2']) }}", "121a2"),
            ("{% set a, b = 1, 2 %}{{ a + b }}", "3"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn failures_name_the_line() {
        let cases = [
            ("a\n{% if %}", "chat template, line 2: syntax error: unexpected end of block"),
            ("a\nb{{ missing.field }}", "chat template, line 2: undefined value: `missing` is undefined"),
            ("{{ 'x' | nonsense }}", "chat template, line 1: unknown filter: filter nonsense is unknown"),
            (
                "\n\n{{ raise_exception('Roles must alternate') }}",
                "the model's chat template refuses this conversation: Roles must alternate",
            ),
            (
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                "chat template, line 1: engine ran out of fuel",
            ),
            (
                "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
                "chat template, line 1: invalid operation: recursion limit exceeded",
            ),
            ("{{ 'abcdefgh' * 1000000000000 }}", "chat template, line 1: engine ran out of fuel"),
        ];
        for (source, message) in cases {
            assert_eq!(render(source).unwrap_err().to_string(), message, "{source}");
        }
    }

    #[test]
    fn an_unknown_time_format_is_an_error() {
        let message = render("{{ strftime_now('%!') }}").unwrap_err().to_string();
        assert!(message.starts_with("chat template, line 1: invalid operation: strftime_now(\"%!\"): "), "{message}");
    }
}
