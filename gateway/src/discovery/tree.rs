//! JSON and YAML as one tree, bounded before it is built.
//!
//! What always holds: a tree is no deeper and no larger than it says here, however much an alias of YAML stands for; no
//! member is there twice.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Objects and lists within each other, at the most.
const MOST_DEPTH: usize = 64;
/// What a tree may cost: its texts, and [`COST`] for each of its values.
const MOST_COST: usize = 64 << 20;
const COST: usize = 64;
/// Marks of YAML, of which each may begin a value; the library keeps all of them in memory at once.
const MOST_MARKS: usize = 1_000_000;
/// Brackets that are open at once; the library looks at all of them at each mark.
const MOST_OPEN: usize = 200;

/// Reads a text that is JSON if it begins like an object or a list of it, else YAML.
///
/// # Errors
/// Why it is neither.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("it must be UTF-8: {error}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let left = Cell::new(MOST_COST);
    let tree = Tree { depth: 0, left: &left };
    if text.trim_start().starts_with(['{', '[']) {
        let mut source = serde_json::Deserializer::from_str(text);
        return tree.deserialize(&mut source).and_then(|value| source.end().map(|()| value)).map_err(|e| e.to_string());
    }
    must_be_small(text)?;
    tree.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| error.to_string())
}

fn must_be_small(yaml: &str) -> Result<(), String> {
    let (mut marks, mut open) = (0_usize, 0_usize);
    for byte in yaml.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b',' | b':' | b'-' | b'?' | b'\n' => {}
            _ => continue,
        }
        marks += 1;
        if marks > MOST_MARKS || open > MOST_OPEN {
            return Err(too_large());
        }
    }
    Ok(())
}

fn too_large() -> String {
    "it is too large or nested too deeply".to_owned()
}

/// A value so many levels down, and what may still be built.
#[derive(Clone, Copy)]
struct Tree<'a> {
    depth: usize,
    left: &'a Cell<usize>,
}

impl Tree<'_> {
    fn charge<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let left = self.left.get().checked_sub(COST + text.len()).ok_or_else(|| E::custom(too_large()))?;
        self.left.set(left);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        self.charge("")?;
        let is_deep = self.depth == MOST_DEPTH;
        if is_deep { Err(E::custom(too_large())) } else { Ok(Self { depth: self.depth + 1, ..self }) }
    }

    fn leaf<E: serde::de::Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.charge("").map(|()| value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value of JSON")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.leaf(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.leaf(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.charge(value).map(|()| value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = source.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut members = Map::new();
        while let Some(name) = source.next_key::<String>()? {
            self.charge::<A::Error>(&name)?;
            let value = source.next_value_seed(inner)?;
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the member `{name}` is there twice")));
            }
            members.insert(name, value);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let tree = json!({ "a": [1, -2, 0.5, true, null, "x"], "200": { "b": "c" } });
        let yaml = "# a comment\na: [1, -2, 0.5, true, ~, x]\n200:\n  b: c\n";
        assert_eq!(parse(tree.to_string().as_bytes()), Ok(tree.clone()));
        assert_eq!(parse(format!("\u{feff} \n{tree}").as_bytes()), Ok(tree.clone()));
        assert_eq!(parse(yaml.as_bytes()), Ok(tree));
        assert_eq!(parse(b"base: &b {x: 1}\nother: *b"), Ok(json!({ "base": { "x": 1 }, "other": { "x": 1 } })));
    }

    /// A list of this many letters, and what stands for it again and again.
    fn laughs(letters: usize, times: usize) -> String {
        format!("a: &a [{}]\nb: [{}]", vec!["a"; letters].join(","), vec!["*a"; times].join(","))
    }

    #[test]
    fn hostile_texts_are_refused_before_they_take_long() {
        let mut lol = "a: &a [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
        for (name, before) in ('b'..='i').zip('a'..) {
            let _ = writeln!(lol, "{name}: &{name} [{}]", vec![format!("*{before}"); 9].join(","));
        }
        let deep = |open: &str, close: &str, times: usize| format!("{}{}", open.repeat(times), close.repeat(times));
        for (what, text) in [
            ("billion laughs", lol.into_bytes()),
            ("long list, many times", laughs(10_000, 10_000).into_bytes()),
            (
                "long text, many times",
                format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), vec!["*a"; 1_000].join(",")).into_bytes(),
            ),
            ("an alias of itself", b"a: &a [*a]".to_vec()),
            ("an alias of nothing", b"a: *b".to_vec()),
            ("deep JSON", deep("[", "]", 1_000_000).into_bytes()),
            ("deep objects", deep("{\"a\":", "}", 100_000).into_bytes()),
            ("deep YAML", format!("a: {}", deep("[", "]", 1_000_000)).into_bytes()),
            ("deep block YAML", "- ".repeat(500_000).into_bytes()),
            ("steps", (0..2_000).map(|n| " ".repeat(n) + "a:\n").collect::<String>().into_bytes()),
            ("many values", format!("[{}0]", "0,".repeat(5_000_000)).into_bytes()),
            ("many YAML values", format!("a: [{}0]", "0,".repeat(5_000_000)).into_bytes()),
            ("twice", br#"{"a":1,"a":2}"#.to_vec()),
            ("twice in YAML", b"a: 1\na: 2".to_vec()),
            ("a tag", b"a: !x b".to_vec()),
            ("two documents", b"a: 1\n---\nb: 2".to_vec()),
            ("UTF-16", "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("Latin-1", b"{\"a\":\"\xe9\"}".to_vec()),
            ("half of it", br#"{"a":"#.to_vec()),
            ("more than it", b"{} {}".to_vec()),
            ("a page", b"<!DOCTYPE html><html>: </html>: ".to_vec()),
        ] {
            let begun = Instant::now();
            let outcome = parse(&text);
            assert!(outcome.is_err(), "{what}: {:.100}", outcome.unwrap().to_string());
            assert!(begun.elapsed() < Duration::from_secs(60), "{what} took {:?}", begun.elapsed());
        }
    }

    proptest! {
        #[test]
        fn any_text_has_an_answer(text in "([\\[\\]{}:,*&!|>?#'\" \\-\n]|[a-c0]|\u{0}){0,40}") {
            let _ = parse(text.as_bytes());
        }
    }
}
