//! Paths to a place in a JSON value: `user.name`, `items[0].id`; in transforms also `$.user.name`.

use std::fmt;

/// Steps of a path, at the most; JSON that is deeper is never read.
const MAX_STEPS: usize = 64;

/// One step deeper into a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member of an object.
    Member(Box<str>),
    /// The item of an array.
    Item(usize),
}

/// Steps from a value to one within it; never none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath(Vec<Step>);

impl FieldPath {
    /// Names joined with dots, each with any number of `[n]` behind it.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        for part in text.split('.') {
            let (name, items) = part.split_at(part.find('[').unwrap_or(part.len()));
            if part.is_empty() {
                return Err(format!("Invalid field path: {text}"));
            }
            if !name.is_empty() {
                steps.push(Step::Member(name.into()));
            }
            let mut rest = items;
            while !rest.is_empty() {
                let inside = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
                let item = inside.and_then(|(number, after)| Some((number.parse().ok()?, after)));
                let Some((index, after)) = item else { return Err(format!("Invalid field path: {text}")) };
                steps.push(Step::Item(index));
                rest = after;
            }
        }
        if steps.len() > MAX_STEPS {
            return Err(format!("Invalid field path: more than {MAX_STEPS} steps"));
        }
        Ok(Self(steps))
    }

    /// The same, from the root `$`, which may be left out.
    ///
    /// # Errors
    /// As [`Self::parse`]; the root itself is no path.
    pub fn parse_from_root(text: &str) -> Result<Self, String> {
        Self::parse(text.strip_prefix("$.").or_else(|| text.strip_prefix('$')).unwrap_or(text))
    }

    /// The steps, outermost first.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Member(name) if index == 0 => out.write_str(name)?,
                Step::Member(name) => write!(out, ".{name}")?,
                Step::Item(item) => write!(out, "[{item}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_they_are_written() {
        for text in ["a", "user.name", "items[0].id", "a[0][12].b", "[3].x", "with space", "a.0"] {
            assert_eq!(FieldPath::parse(text).unwrap().to_string(), text);
        }
        let path = FieldPath::parse("items[0].id").unwrap();
        assert_eq!(path.steps(), [Step::Member("items".into()), Step::Item(0), Step::Member("id".into())]);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long = vec!["a"; 65].join(".");
        for text in
            ["", ".", "a.", ".a", "a..b", "a[", "a[]", "a[x]", "a[-1]", "a[0]b", "a[0", "a[99999999999999999999]"]
        {
            assert_eq!(FieldPath::parse(text), Err(format!("Invalid field path: {text}")), "{text}");
        }
        assert!(FieldPath::parse(&long).is_err());
    }

    #[test]
    fn the_root_may_be_written_or_not() {
        let plain = FieldPath::parse("a.b[0]").unwrap();
        assert_eq!(FieldPath::parse_from_root("$.a.b[0]").unwrap(), plain);
        assert_eq!(FieldPath::parse_from_root("a.b[0]").unwrap(), plain);
        assert_eq!(FieldPath::parse_from_root("$[1]").unwrap().steps(), [Step::Item(1)]);
        for text in ["$", "$.", "$..a"] {
            assert!(FieldPath::parse_from_root(text).is_err(), "{text}");
        }
    }
}
