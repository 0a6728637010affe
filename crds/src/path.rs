//! Endpoint URIs: literal and `{parameter}` segments, matched segment by segment.
//!
//! Matching is on decoded segments; empty segments never exist (`/a//b/` is `/a/b`), as the request parse guarantees.

use std::fmt;

/// An endpoint URI such as `/items/{id}`, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    segments: Vec<Segment>,
}

/// One segment of a [`PathTemplate`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Matches exactly this text, case-sensitively.
    Literal(String),
    /// Matches any one non-empty segment and names it.
    Parameter(String),
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
        let mut segments = Vec::new();
        let mut names = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty()) {
            let segment = Segment::parse(part)?;
            if let Segment::Parameter(name) = &segment {
                if names.contains(name) {
                    return Err(format!("parameter `{{{name}}}` is used twice"));
                }
                names.push(name.clone());
            }
            segments.push(segment);
        }
        Ok(Self { segments })
    }

    /// The segments in order; none for the root `/`.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What it matches. Two templates of one shape answer the same calls.
    pub fn shape(&self) -> Shape {
        let part = |segment: &Segment| match segment {
            Segment::Literal(text) => Some(text.clone()),
            Segment::Parameter(_) => None,
        };
        Shape(self.segments.iter().map(part).collect())
    }

    /// The first parameter that this path of an upstream needs and `client`, the path that clients call, does not give.
    pub fn missing_in<'a>(&'a self, client: &Self) -> Option<&'a str> {
        self.parameters().find(|name| !client.parameters().any(|own| own == *name))
    }

    /// Names of the parameters in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }
}

impl Segment {
    fn parse(part: &str) -> Result<Self, String> {
        if let Some(name) = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let ok = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            return if ok {
                Ok(Self::Parameter(name.to_owned()))
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
        Ok(Self::Literal(part.to_owned()))
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            return f.write_str("/");
        }
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Parameter(name) => write!(f, "/{{{name}}}")?,
            }
        }
        Ok(())
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
