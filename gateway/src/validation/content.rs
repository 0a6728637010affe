//! A body as rules look at it, whatever it was written in.
//!
//! Rules find members by name, and readers differ in which names are the same to them: many don't mind case, some stop
//! at NUL, some take attributes of XML for members. So a name that somebody could take for that of a rule, and is not
//! it, is refused where the rule looks, instead of being passed by.

use std::cmp::Ordering;

use serde_json::{Number, Value};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Text.
    Text(String),
    /// The text of an element of XML, and its attributes.
    Attributed(String, Members),
    /// A list.
    List(Vec<Content>),
    /// Named members.
    Object(Members),
}

/// Members, those with alike names beside each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members(Vec<(Box<str>, Member)>);

/// What has a name.
#[derive(Clone, Debug, PartialEq)]
pub enum Member {
    /// A value.
    Value(Content),
    /// An attribute of XML, which no rule is about.
    Attribute,
}

impl Content {
    /// Values of the members of this name: one at most, but in XML.
    ///
    /// # Errors
    /// What the client is told when there is a member that could be taken for it.
    pub fn named<'a>(&'a self, name: &str) -> Result<impl Iterator<Item = &'a Self> + Clone + use<'a>, String> {
        let members = match self {
            Self::Object(members) | Self::Attributed(_, members) => members.alike(name),
            _ => &[],
        };
        for (other, member) in members {
            if **other != *name {
                return Err(format!("{other:?} is too much like {name:?}, which is checked"));
            }
            if *member == Member::Attribute {
                return Err(format!("{name:?} is checked as an element, and is an attribute"));
            }
        }
        Ok(members.iter().filter_map(|(_, member)| match member {
            Member::Value(value) => Some(value),
            Member::Attribute => None,
        }))
    }

    /// Text, of an element too.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Attributed(text, _) => Some(text),
            _ => None,
        }
    }

    /// Is it the same as a value of a rule? `1` and `1.0` are.
    pub fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(own), Value::Bool(other)) => own == other,
            (Self::Number(own), Value::Number(other)) if own.is_f64() || other.is_f64() => {
                own.as_f64() == other.as_f64()
            }
            (Self::Number(own), Value::Number(other)) => own == other,
            (Self::Text(own) | Self::Attributed(own, _), Value::String(other)) => own == other,
            (Self::List(own), Value::Array(other)) => {
                own.len() == other.len() && own.iter().zip(other).all(|(own, other)| own.is(other))
            }
            (Self::Object(Members(own)), Value::Object(other)) => {
                let is_there = |(name, member): &(Box<str>, Member)| match member {
                    Member::Value(own) => other.get(&**name).is_some_and(|other| own.is(other)),
                    Member::Attribute => false,
                };
                own.len() == other.len() && own.iter().all(is_there)
            }
            _ => false,
        }
    }

    /// What it is, in the words of the rules.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::Text(_) | Self::Attributed(..) => "string",
            Self::List(_) => "array",
            Self::Object(_) => "object",
        }
    }
}

impl Members {
    /// The name that is there twice, if one is.
    pub fn repeated(&self) -> Option<&str> {
        self.0.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| &*pair[0].0)
    }

    /// Those whose names somebody could take for this one.
    fn alike(&self, name: &str) -> &[(Box<str>, Member)] {
        let start = self.0.partition_point(|(other, _)| compare(other, name) == Ordering::Less);
        let length = self.0[start..].partition_point(|(other, _)| compare(other, name) == Ordering::Equal);
        &self.0[start..start + length]
    }
}

impl FromIterator<(Box<str>, Member)> for Members {
    fn from_iter<I: IntoIterator<Item = (Box<str>, Member)>>(members: I) -> Self {
        let mut members: Vec<_> = members.into_iter().collect();
        members.sort_by(|(one, _), (other, _)| compare(one, other).then_with(|| one.cmp(other)));
        Self(members)
    }
}

/// Orders names so that alike ones are equal: up to a NUL, whatever their case.
fn compare(one: &str, other: &str) -> Ordering {
    fn in_ascii(name: &str) -> impl Iterator<Item = u8> {
        name.bytes().take_while(|byte| *byte != 0).map(|byte| byte.to_ascii_lowercase())
    }
    // Both ways, since some letters meet another only in one: the long s is an S in capitals.
    fn in_any(name: &str) -> impl Iterator<Item = char> {
        let letters = name.chars().take_while(|letter| *letter != '\0').flat_map(char::to_lowercase);
        letters.flat_map(char::to_uppercase).flat_map(char::to_lowercase)
    }
    if one.is_ascii() && other.is_ascii() { in_ascii(one).cmp(in_ascii(other)) } else { in_any(one).cmp(in_any(other)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(names: &[&str]) -> Content {
        Content::Object(names.iter().map(|name| ((*name).into(), Member::Value(Content::Null))).collect())
    }

    #[test]
    fn a_name_is_found_or_its_double_refused() {
        for (names, found) in [
            (&["amount"][..], Some(1)),
            (&["amounts", "amoun", "b"], Some(0)),
            (&["amount", "amount"], Some(2)),
            (&["Amount"], None),
            (&["amount", "AMOUNT"], None),
            (&["amount", "amount\0"], None),
            (&["a", "amount\0x"], None),
            (&["amount", "other", "oTher"], Some(1)),
        ] {
            let object = object(names);
            assert_eq!(object.named("amount").ok().map(Iterator::count), found, "{names:?}");
        }
        for (one, other) in [("user", "u\u{17f}er"), ("key", "\u{212a}ey"), ("straße", "STRASSE"), ("ı", "I")] {
            assert!(object(&[other]).named(one).is_err() && object(&[one]).named(other).is_err(), "{one} {other}");
        }
    }

    #[test]
    fn attributes_are_no_members() {
        let named = |name: &str| -> Members { [(name.into(), Member::Attribute)].into_iter().collect() };
        for content in [Content::Object(named("Id")), Content::Attributed("x".into(), named("id"))] {
            assert!(content.named("id").is_err());
            assert_eq!(content.named("other").map(Iterator::count), Ok(0));
        }
    }

    proptest! {
        #[test]
        fn names_have_one_order(names in prop::collection::vec("[aAsSſkK\u{212a}iIİı\u{0}ßé]{0,3}", 3)) {
            let [a, b, c] = [&names[0], &names[1], &names[2]];
            prop_assert_eq!(compare(a, b), compare(b, a).reverse());
            if compare(a, b) != Ordering::Greater && compare(b, c) != Ordering::Greater {
                prop_assert_ne!(compare(a, c), Ordering::Greater);
            }
        }
    }
}
