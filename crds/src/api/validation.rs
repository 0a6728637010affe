//! What an endpoint demands of bodies, from its wire form to typed rules (reference: gateway behaviour 16).
//!
//! Patterns are compiled here, so that the operator refuses what the gateway can't apply. Matching them takes linear
//! time whatever the pattern, and their compiled size is bounded.

use serde_json::{Map, Value};

use super::field_path::{FieldPath, Step};
use super::{RuleSpec, ValidationSpec};
use crate::FieldError;

/// Rules within rules, at the most.
const MAX_DEPTH: usize = 16;
/// Rules of one endpoint, nested ones included.
const MAX_RULES: usize = 1024;
/// Bytes of one compiled pattern.
const MAX_PATTERN_SIZE: usize = 1 << 20;
/// Members of a nested rule, as the kinds spell them.
const MEMBERS: [&str; 9] =
    ["required", "type", "min", "max", "pattern", "format", "enum", "nestedSchema", "arrayItems"];

/// What an endpoint demands of bodies: never nothing. Rules are in the order of their paths' text.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation(Vec<(FieldPath, Rule)>);

/// What one value must be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Whether it must be there and not null.
    pub required: bool,
    /// Its type.
    pub kind: Kind,
    /// Least value, length in characters or number of items.
    pub min: Option<f64>,
    /// Largest value, length in characters or number of items.
    pub max: Option<f64>,
    /// What text must match from its start.
    pub pattern: Option<Pattern>,
    /// What text must be.
    pub format: Option<Format>,
    /// The only values there are.
    pub allowed: Option<Vec<Value>>,
    /// Rules of an object's members, by name.
    pub members: Vec<(Box<str>, Rule)>,
    /// The rule of each item of an array.
    pub items: Option<Box<Rule>>,
}

/// Types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// A number; `true` is none.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list.
    Array,
    /// Named members.
    Object,
    /// A name that is not one of these asks for nothing.
    Any,
}

/// Formats of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An e-mail address.
    Email,
    /// An `http` or `https` URL.
    Url,
    /// A day of the calendar.
    Date,
    /// A day and a time of day (ISO 8601).
    DateTime,
    /// A UUID in any of its spellings.
    Uuid,
}

/// A regular expression.
#[derive(Clone, Debug)]
pub struct Pattern(regex::Regex);

impl Pattern {
    fn compile(text: &str) -> Result<Self, String> {
        let compiled = regex::RegexBuilder::new(text).size_limit(MAX_PATTERN_SIZE).build();
        compiled.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "is too large when compiled; make its repetitions smaller".to_owned(),
            // The last line says what is wrong, those before show where.
            error => {
                let shown = error.to_string();
                let cause = shown.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                format!("`{text}` can't be used: {cause}")
            }
        })
    }

    /// Does text match it from its start on?
    pub fn matches(&self, text: &str) -> bool {
        // The leftmost match starts at the start if any does.
        self.0.find(text).is_some_and(|found| found.start() == 0)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Validation {
    /// Reads rules, whether they are enabled or not. `None`: there are none.
    ///
    /// # Errors
    /// Every problem found, each with the place below `field` that it is in.
    pub fn parse(field: &str, spec: &ValidationSpec) -> Result<Option<Self>, Vec<FieldError>> {
        let mut parser = Parser::default();
        let mut rules = Vec::with_capacity(spec.rules.len());
        for (path, rule) in &spec.rules {
            let field = format!("{field}.rules[{path}]");
            let path = FieldPath::parse(path).map_err(|message| parser.refuse(&field, message));
            let rule = parser.rule(&field, rule, 1);
            rules.extend(path.ok().map(|path| (path, rule)));
        }
        if parser.count > MAX_RULES {
            parser.refuse(field, format!("has {} rules, nested ones included; {MAX_RULES} are allowed", parser.count));
        }
        if !parser.errors.is_empty() {
            return Err(parser.errors);
        }
        Ok((!rules.is_empty()).then_some(Self(rules)))
    }

    /// The rules, each with the steps to what it is about.
    pub fn rules(&self) -> impl Iterator<Item = (&[Step], &Rule)> {
        self.0.iter().map(|(path, rule)| (path.steps(), rule))
    }
}

#[derive(Default)]
struct Parser {
    count: usize,
    errors: Vec<FieldError>,
}

impl Parser {
    fn refuse(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(FieldError::invalid(field, message));
    }

    fn rule(&mut self, field: &str, spec: &RuleSpec, depth: usize) -> Rule {
        self.count += 1;
        let kind = match spec.type_.as_str() {
            "string" => Kind::String,
            "number" => Kind::Number,
            "boolean" => Kind::Boolean,
            "array" => Kind::Array,
            "object" => Kind::Object,
            _ => Kind::Any,
        };
        let format = spec.format.as_deref().and_then(|format| match format {
            "email" => Some(Format::Email),
            "url" => Some(Format::Url),
            "date" => Some(Format::Date),
            "datetime" => Some(Format::DateTime),
            "uuid" => Some(Format::Uuid),
            _ => None,
        });
        let pattern = spec.pattern.as_deref().and_then(|text| {
            Pattern::compile(text).map_err(|message| self.refuse(&format!("{field}.pattern"), message)).ok()
        });
        let mut members = Vec::new();
        for (name, nested) in spec.nested_schema.iter().flatten() {
            let field = format!("{field}.nestedSchema[{name}]");
            let rule = if let Value::Object(nested) = nested {
                self.nested(&field, nested, depth)
            } else {
                self.refuse(&field, "must be a rule: an object with `required` and `type`");
                None
            };
            members.extend(rule.map(|rule| (name.as_str().into(), rule)));
        }
        let items = spec.array_items.as_ref().and_then(|nested| {
            let rule = self.nested(&format!("{field}.arrayItems"), nested, depth);
            rule.map(Box::new)
        });
        Rule {
            required: spec.required,
            kind,
            min: spec.min,
            max: spec.max,
            pattern,
            format,
            allowed: spec.enum_.clone(),
            members,
            items,
        }
    }

    /// A rule that Kubernetes stores without looking at it.
    fn nested(&mut self, field: &str, rule: &Map<String, Value>, depth: usize) -> Option<Rule> {
        if depth >= MAX_DEPTH {
            self.refuse(field, format!("rules are nested more than {MAX_DEPTH} deep"));
            return None;
        }
        if let Some(unknown) = rule.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
            self.refuse(field, format!("`{unknown}` is no member of a rule; there are {}", MEMBERS.join(", ")));
            return None;
        }
        match serde_path_to_error::deserialize(&Value::Object(rule.clone())) {
            Ok(spec) => Some(self.rule(field, &spec, depth + 1)),
            Err(error) => {
                let path = error.path().to_string();
                let field = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
                self.refuse(&field, error.into_inner().to_string());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(rules: Value) -> Result<Option<Validation>, Vec<FieldError>> {
        Validation::parse("v", &serde_json::from_value(json!({ "rules": rules })).unwrap())
    }

    fn nested(depth: usize) -> Value {
        let inner = json!({ "required": true, "type": "array" });
        (1..depth).fold(inner, |rule, _| json!({ "required": true, "type": "array", "arrayItems": rule }))
    }

    #[test]
    fn rules_read_as_what_they_say() {
        let validation = parse(json!({
            "items": { "required": true, "type": "array", "min": 1, "arrayItems": { "required": false, "type": "object",
                "nestedSchema": { "id": { "required": true, "type": "string", "format": "uuid" } } } },
            "a.b": { "required": false, "type": "odd", "max": 2.5, "format": "odd", "enum": [1, null] },
        }));
        let validation = validation.unwrap().unwrap();
        let rules: Vec<_> = validation.rules().collect();
        let (path, first) = rules[0];
        assert_eq!(path, [Step::Member("a".into()), Step::Member("b".into())]);
        assert_eq!((first.kind, first.max, first.format), (Kind::Any, Some(2.5), None));
        let (_, second) = rules[1];
        let id = &second.items.as_ref().unwrap().members[0];
        assert_eq!((&*id.0, id.1.required, id.1.format), ("id", true, Some(Format::Uuid)));
        assert_eq!(parse(json!({})).unwrap(), None);
    }

    #[test]
    fn each_problem_names_its_field() {
        let rule = |more: Value| {
            let mut rule = json!({ "required": true, "type": "object" });
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "x": rule })
        };
        let table = [
            (json!({ "a..b": { "required": true, "type": "string" } }), "v.rules[a..b]", "Invalid field path: a..b"),
            (rule(json!({ "pattern": "(" })), "v.rules[x].pattern", "`(` can't be used: unclosed group"),
            (rule(json!({ "pattern": "(?=a)" })), "v.rules[x].pattern", "look-around"),
            (rule(json!({ "pattern": "(\\w{100}){100}" })), "v.rules[x].pattern", "too large"),
            (rule(json!({ "nestedSchema": { "a": 1 } })), "v.rules[x].nestedSchema[a]", "must be a rule"),
            (
                rule(json!({ "nestedSchema": { "a": { "type": "string" } } })),
                "v.rules[x].nestedSchema[a]",
                "`required`",
            ),
            (rule(json!({ "arrayItems": { "required": 1, "type": "s" } })), "v.rules[x].arrayItems.required", "bool"),
            (rule(json!({ "arrayItems": { "minn": 1 } })), "v.rules[x].arrayItems", "`minn` is no member"),
            (
                rule(json!({ "arrayItems": { "required": true, "type": "string", "pattern": "[" } })),
                "v.rules[x].arrayItems.pattern",
                "unclosed",
            ),
        ];
        for (rules, field, message) in table {
            let errors = parse(rules.clone()).expect_err(&rules.to_string());
            let named = errors.iter().any(|error| error.field == field && error.message.contains(message));
            assert!(named, "{rules}: {errors:?}");
        }
    }

    #[test]
    fn nesting_and_number_of_rules_are_bounded() {
        assert!(parse(json!({ "x": nested(MAX_DEPTH) })).is_ok());
        let errors = parse(json!({ "x": nested(MAX_DEPTH + 1) })).unwrap_err();
        assert!(errors[0].message.contains("nested more than 16 deep"), "{errors:?}");
        let member = json!({ "required": true, "type": "string" });
        let many: Map<String, Value> = (0..MAX_RULES).map(|n| (n.to_string(), member.clone())).collect();
        let errors = parse(json!({ "x": { "required": true, "type": "object", "nestedSchema": many } })).unwrap_err();
        assert_eq!((&*errors[0].field, errors.len()), ("v", 1), "{errors:?}");
    }

    #[test]
    fn patterns_match_from_the_start_only() {
        let pattern = Pattern::compile("ab|c").unwrap();
        for (text, matches) in [("ab", true), ("abx", true), ("cx", true), ("xab", false), ("", false), ("xc", false)] {
            assert_eq!(pattern.matches(text), matches, "{text}");
        }
        assert!(Pattern::compile("").unwrap().matches("anything"));
        assert!(Pattern::compile("(?x) a # comment").unwrap().matches("ab"));
    }
}
