//! Endpoint URIs: literal and `{parameter}` segments, matched segment by segment.
//!
//! Matching is on decoded segments; empty segments never exist (`/a//b/` is `/a/b`), as the request parse guarantees.

use std::fmt;

/// An endpoint URI such as `/items/{id}`, parsed: its segments, each behind a slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    text: Box<str>,
}

/// One segment of a [`PathTemplate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Segment<'a> {
    /// Matches exactly this text, case-sensitively.
    Literal(&'a str),
    /// Matches any one non-empty segment and names it.
    Parameter(&'a str),
}

/// What a [`PathTemplate`] matches, whatever its parameters are called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape(Vec<Option<String>>);

impl PathTemplate {
    /// Parses `/a/{b}`. The message says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("`{text}` must start with `/`"));
        }
        let mut own = String::with_capacity(text.len());
        let mut names = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty()) {
            if let Segment::Parameter(name) = Segment::parse(part)? {
                if names.contains(&name) {
                    return Err(format!("parameter `{{{name}}}` is used twice"));
                }
                names.push(name);
            }
            own.push('/');
            own.push_str(part);
        }
        Ok(Self { text: own.into() })
    }

    /// The segments in order; none for the root `/`.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.text.split('/').skip(1).map(Segment::of)
    }

    /// What it matches. Two templates of one shape answer the same calls.
    pub fn shape(&self) -> Shape {
        let part = |segment| match segment {
            Segment::Literal(text) => Some(str::to_owned(text)),
            Segment::Parameter(_) => None,
        };
        Shape(self.segments().map(part).collect())
    }

    /// The first parameter that this path of an upstream needs and `client`, the path that clients call, does not give.
    pub fn missing_in<'a>(&'a self, client: &Self) -> Option<&'a str> {
        self.parameters().find(|name| !client.parameters().any(|own| own == *name))
    }

    /// Names of the parameters in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name),
            Segment::Literal(_) => None,
        })
    }
}

impl<'a> Segment<'a> {
    /// A part as [`Self::parse`] takes it.
    fn of(part: &'a str) -> Self {
        let name = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        name.map_or(Self::Literal(part), Self::Parameter)
    }

    fn parse(part: &'a str) -> Result<Self, String> {
        let segment = Self::of(part);
        if let Self::Parameter(name) = segment {
            let ok = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            return if ok {
                Ok(segment)
            } else {
                Err(format!("`{part}` is not a parameter: use letters, digits, `_` and `-` between the braces"))
            };
        }
        if part.contains(['{', '}']) {
            return Err(format!("`{part}`: a parameter must be a whole segment"));
        }
        if part == "." || part == ".." {
            return Err("`.` and `..` segments are not allowed".to_owned());
        }
        if let Some(bad) = part.chars().find(|c| c.is_control() || c.is_whitespace() || "\\;#?%".contains(*c)) {
            return Err(format!("`{part}` holds {bad:?}, which never reaches matching; write the path decoded"));
        }
        Ok(segment)
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "/" } else { &self.text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn root_and_extra_slashes_are_normalised() {
        assert_eq!(PathTemplate::parse("/").unwrap().to_string(), "/");
        assert_eq!(PathTemplate::parse("//a///{b}/").unwrap().to_string(), "/a/{b}");
    }

    #[test]
    fn ambiguous_templates_are_refused() {
        for text in ["a", "/{}", "/x{y}", "/{a}/{a}", "/..", "/a;b", "/a%2fb", "/a?b", "/a b", "/{a b}"] {
            assert!(PathTemplate::parse(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn names_of_parameters_make_no_other_shape() {
        let shape = |text: &str| PathTemplate::parse(text).unwrap().shape();
        assert_eq!(shape("/a/{id}/b"), shape("/a//{key}/b/"));
        assert_ne!(shape("/a/{id}"), shape("/a/id"));
        assert_ne!(shape("/a/{id}"), shape("/{id}/a"));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_round_trip(text in "(/([a-z.]{1,4}x|\\{[a-z]{1,9}[0-9]\\})){0,6}") {
            if let Ok(template) = PathTemplate::parse(&text) {
                prop_assert_eq!(PathTemplate::parse(&template.to_string()), Ok(template));
            }
        }
    }
}
