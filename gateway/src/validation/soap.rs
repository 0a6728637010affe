//! The payload of a SOAP message as a value (reference: gateway behaviour 16.5).
//!
//! In: a body. Out: the one element inside the SOAP `Body`, as members by local name: leaves are text, an element that is
//! nil is null. Whatever two readers of XML could take for different values is refused, and so is what is not well-formed:
//! the value that is checked must be the one that the upstream reads. Depth, elements and namespaces are bounded.

use std::collections::HashMap;
use std::sync::LazyLock;

use quick_xml::events::{BytesDecl, BytesStart, Event};
use quick_xml::name::{Namespace, NamespaceResolver, PrefixDeclaration, ResolveResult};
use quick_xml::{NsReader, XmlVersion};
use regex::Regex;

use super::content::{Content, Member};

/// Namespaces of SOAP 1.1 and 1.2.
const SOAP: [&str; 2] = ["http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"];
/// Has attributes about an element itself: its type, and whether it is nil.
const SCHEMA_INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// Has attributes about an element itself: its language, its spaces.
const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// Its `ref` names an element that has the content; in SOAP 1.1 `href` does.
const ENCODING: &str = "http://www.w3.org/2003/05/soap-encoding";
/// Elements of these namespaces stand for content that is elsewhere.
const INCLUDED: [&str; 2] = ["http://www.w3.org/2001/XInclude", "http://www.w3.org/2004/08/xop/include"];
const BYTE_ORDER_MARK: char = '\u{feff}';
/// Elements within each other, at the most.
const MAX_DEPTH: usize = 64;
/// Elements of a message, at the most.
const MAX_ELEMENTS: usize = 10_000;

/// What the reader leaves to others to check: names, and attributes apart from each other and without `<` (XML 1.0, 3.1).
static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let start = r"A-Z_a-z\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{2FF}\x{370}-\x{37D}\x{37F}-\x{1FFF}\x{200C}-\x{200D}\x{2070}-\x{218F}\x{2C00}-\x{2FEF}\x{3001}-\x{D7FF}\x{F900}-\x{FDCF}\x{FDF0}-\x{FFFD}\x{10000}-\x{EFFFF}";
    let part = format!(r"[{start}][{start}\-.0-9\x{{B7}}\x{{300}}-\x{{36F}}\x{{203F}}-\x{{2040}}]*");
    let name = format!("{part}(?::{part})?");
    expression(&format!(r#"^{name}(?:[ \t\r\n]+{name}[ \t\r\n]*=[ \t\r\n]*(?:"[^<"]*"|'[^<']*'))*[ \t\r\n]*$"#))
});

/// The declaration of XML 1.0 in UTF-8 or a part of it (XML 1.0, 2.8 and 4.3.3). The group is the part.
static DECLARATION: LazyLock<Regex> = LazyLock::new(|| {
    let s = r"[ \t\r\n]";
    let either = |value: &str| format!(r#"{s}*={s}*(?:"{value}"|'{value}')"#);
    let (version, encoding) = (either(r"1\.0"), either("(?i:utf-?8|(us-ascii))"));
    expression(&format!(
        "^xml{s}+version{version}(?:{s}+encoding{encoding})?(?:{s}+standalone{})?{s}*$",
        either("(?:yes|no)")
    ))
});

fn expression(text: &str) -> Regex {
    Regex::new(text).unwrap_or_else(|error| unreachable!("it is well-formed: {error}"))
}

/// Why there is no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPayload {
    /// Not well-formed, or in an encoding that is read otherwise.
    #[error("Invalid SOAP envelope")]
    NotXml,
    /// No payload where SOAP has it.
    #[error("SOAP Body not found")]
    NoBody,
    /// What could name files or grow without bound.
    #[error("Invalid SOAP envelope: DTDs and entities are not allowed")]
    Entities,
    /// Deeper or larger than is followed.
    #[error("Invalid SOAP envelope: more than {MAX_DEPTH} levels or {MAX_ELEMENTS} elements")]
    TooLarge,
    /// Well-formed, and read in one way by some and in another by others.
    #[error("Invalid SOAP envelope: {0}")]
    Ambiguous(&'static str),
}

impl From<quick_xml::Error> for NoPayload {
    fn from(_: quick_xml::Error) -> Self {
        Self::NotXml
    }
}

/// Where in a message a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// Before or after the envelope.
    #[default]
    Outside,
    Envelope,
    Header,
    Body,
    Payload,
}

/// An element of the payload that has not ended.
#[derive(Default)]
struct Open {
    name: Box<str>,
    /// Number of its namespace.
    namespace: usize,
    attributes: Vec<Box<str>>,
    is_nil: bool,
    children: Vec<(Box<str>, usize, Content)>,
    text: String,
    /// Pieces of text that some readers keep apart.
    pieces: u32,
    /// Whether what comes next belongs to the last of them.
    is_in_piece: bool,
    has_comment: bool,
}

impl Open {
    fn add(&mut self, text: &str, is_piece_of_its_own: bool) {
        self.pieces += u32::from(is_piece_of_its_own || !self.is_in_piece);
        self.is_in_piece = !is_piece_of_its_own;
        self.text.push_str(text);
    }

    /// Its value, now that it ends.
    fn close(mut self, is_payload: bool) -> Result<(Box<str>, usize, Content), NoPayload> {
        let is_leaf = self.children.is_empty();
        if !is_leaf && !is_blank(&self.text) {
            return Err(NoPayload::Ambiguous("an element has text beside elements"));
        }
        if is_leaf && !is_payload && (self.pieces > 1 || self.has_comment) {
            return Err(NoPayload::Ambiguous("text is in pieces: a comment, or CDATA beside other text"));
        }
        if self.is_nil && !(is_leaf && self.text.is_empty()) {
            return Err(NoPayload::Ambiguous("an element is nil and has content"));
        }
        // Siblings of one name are kept in their order, so that those of different namespaces meet.
        self.children.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        if self.children.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
            return Err(NoPayload::Ambiguous("elements of one name are of different namespaces"));
        }
        let attributes = self.attributes.into_iter().map(|name| (name, Member::Attribute));
        let children = self.children.into_iter().map(|(name, _, value)| (name, Member::Value(value)));
        let content = match (self.is_nil, is_leaf && !is_payload) {
            (true, _) => Content::Null,
            (false, true) if attributes.len() == 0 => Content::Text(self.text),
            (false, true) => Content::Attributed(self.text, attributes.collect()),
            (false, false) => Content::Object(attributes.chain(children).collect()),
        };
        Ok((self.name, self.namespace, content))
    }
}

/// Reads a message.
///
/// # Errors
/// See [`NoPayload`].
pub fn payload(body: &[u8]) -> Result<Content, NoPayload> {
    let text = std::str::from_utf8(body).map_err(|_| NoPayload::NotXml)?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    // The reader takes another one off.
    if text.starts_with(BYTE_ORDER_MARK) || !text.chars().all(is_character) {
        return Err(NoPayload::NotXml);
    }
    let mut reader = NsReader::from_str(text);
    let config = reader.config_mut();
    (config.expand_empty_elements, config.check_comments) = (true, true);
    let mut message = Message::default();
    let mut is_first = true;
    loop {
        let event = reader.read_event()?;
        match &event {
            Event::Start(start) => message.start(start, reader.resolver())?,
            Event::End(_) => message.end()?,
            Event::Text(piece) if piece.contains("]]>") => return Err(NoPayload::NotXml),
            Event::Text(piece) => message.text(&piece.xml10_content(), false)?,
            Event::CData(_) | Event::GeneralRef(_) if message.part == Part::Outside => return Err(NoPayload::NotXml),
            Event::CData(piece) => message.text(&piece.xml10_content(), true)?,
            Event::GeneralRef(reference) => {
                let mut buffer = [0; 4];
                let text = match (reference.resolve_char_ref()?, reference.xml10_content().as_ref()) {
                    (Some(character), _) if !is_character(character) => return Err(NoPayload::NotXml),
                    (Some(character), _) => character.encode_utf8(&mut buffer),
                    (None, name) => quick_xml::escape::resolve_xml_entity(name).ok_or(NoPayload::Entities)?,
                };
                message.text(text, false)?;
            }
            Event::Decl(declaration) if !is_first || !is_declaration(declaration, text) => {
                return Err(NoPayload::NotXml);
            }
            Event::Decl(_) => {}
            Event::DocType(_) => return Err(NoPayload::Entities),
            Event::Comment(_) => message.open.last_mut().into_iter().for_each(|element| {
                (element.has_comment, element.is_in_piece) = (true, false);
            }),
            // SOAP has none (SOAP 1.1, 3; SOAP 1.2, 5).
            Event::PI(_) => message.refuse(NoPayload::Ambiguous("it has a processing instruction")),
            Event::Empty(_) => unreachable!("the reader expands them"),
            Event::Eof => return message.finish(),
        }
        is_first = false;
    }
}

/// What was read so far.
#[derive(Default)]
struct Message {
    part: Part,
    depth: usize,
    elements: usize,
    /// The namespace of the envelope.
    soap: Option<&'static str>,
    has_header: bool,
    has_body: bool,
    /// Elements of the payload, the innermost last.
    open: Vec<Open>,
    payload: Option<Content>,
    /// Numbers of namespaces; that of none is 0.
    namespaces: HashMap<String, usize>,
    /// What is wrong with a message that may be well-formed.
    wrong: Option<NoPayload>,
}

impl Message {
    /// The first thing that is wrong is told, unless it isn't even XML.
    fn refuse(&mut self, why: NoPayload) {
        self.wrong.get_or_insert(why);
    }

    fn start(&mut self, start: &BytesStart<'_>, resolver: &NamespaceResolver) -> Result<(), NoPayload> {
        self.elements += 1;
        if self.depth == MAX_DEPTH || self.elements > MAX_ELEMENTS {
            return Err(NoPayload::TooLarge);
        }
        if self.depth == 0 && self.elements > 1 || !TAG.is_match(start) {
            return Err(NoPayload::NotXml);
        }
        let (namespace, name) = resolver.resolve_element(start.name());
        let namespace = name_of(&namespace)?;
        let attributes = Attributes::read(start, resolver)?;
        match self.part {
            Part::Outside => {
                self.soap = SOAP.into_iter().find(|soap| namespace == Some(soap));
                if self.soap.is_none() || name.as_ref() != "Envelope" {
                    self.refuse(NoPayload::NoBody);
                }
                self.part = Part::Envelope;
            }
            Part::Envelope => match name.as_ref() {
                _ if self.soap.is_none() || namespace != self.soap => {
                    self.refuse(NoPayload::Ambiguous("Header and Body are all that an Envelope has"));
                    self.part = Part::Header;
                }
                "Body" if !self.has_body => (self.part, self.has_body) = (Part::Body, true),
                "Header" if !self.has_body && !self.has_header => {
                    (self.part, self.has_header) = (Part::Header, true);
                }
                _ => {
                    self.refuse(NoPayload::Ambiguous("an Envelope has one Header at most, then one Body"));
                    self.part = Part::Header;
                }
            },
            Part::Header => {}
            Part::Body | Part::Payload => {
                if self.part == Part::Body && self.payload.is_some() {
                    self.refuse(NoPayload::Ambiguous("the Body has more than one element"));
                }
                if attributes.is_reference || namespace.is_some_and(|namespace| INCLUDED.contains(&namespace)) {
                    self.refuse(NoPayload::Ambiguous("content is somewhere else"));
                }
                self.part = Part::Payload;
                let namespace = self.number(namespace);
                self.open.push(Open {
                    name: name.as_ref().into(),
                    namespace,
                    attributes: attributes.names,
                    is_nil: attributes.is_nil,
                    ..Open::default()
                });
            }
        }
        self.depth += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), NoPayload> {
        self.depth = self.depth.checked_sub(1).ok_or(NoPayload::NotXml)?;
        if let Some(element) = self.open.pop() {
            match element.close(self.open.is_empty()) {
                Err(why) => self.refuse(why),
                Ok(child) => match self.open.last_mut() {
                    Some(parent) => parent.children.push(child),
                    None => self.payload = Some(child.2),
                },
            }
        }
        self.part = match self.depth {
            0 => Part::Outside,
            1 => Part::Envelope,
            2 if self.part == Part::Payload => Part::Body,
            _ => self.part,
        };
        Ok(())
    }

    /// Text, or what stands for it.
    fn text(&mut self, text: &str, is_piece_of_its_own: bool) -> Result<(), NoPayload> {
        match self.part {
            Part::Outside if !is_blank(text) => return Err(NoPayload::NotXml),
            Part::Envelope | Part::Body if !is_blank(text) => {
                self.refuse(NoPayload::Ambiguous("an element has text beside elements"));
            }
            Part::Outside | Part::Envelope | Part::Body | Part::Header => {}
            Part::Payload => {
                self.open.last_mut().into_iter().for_each(|element| element.add(text, is_piece_of_its_own));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Content, NoPayload> {
        if self.depth > 0 || self.elements == 0 {
            return Err(NoPayload::NotXml);
        }
        match self.wrong {
            Some(wrong) => Err(wrong),
            None => self.payload.ok_or(NoPayload::NoBody),
        }
    }

    fn number(&mut self, namespace: Option<&str>) -> usize {
        let Some(namespace) = namespace else { return 0 };
        if let Some(number) = self.namespaces.get(namespace) {
            return *number;
        }
        let number = self.namespaces.len() + 1;
        self.namespaces.insert(namespace.to_owned(), number);
        number
    }
}

/// What attributes say about an element.
#[derive(Default)]
struct Attributes {
    /// Local names of those that some readers take for members.
    names: Vec<Box<str>>,
    is_nil: bool,
    /// Whether the content is that of another element.
    is_reference: bool,
}

impl Attributes {
    fn read(start: &BytesStart<'_>, resolver: &NamespaceResolver) -> Result<Self, NoPayload> {
        let mut own = Self::default();
        let mut qualified = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|_| NoPayload::NotXml)?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0)?;
            if !value.chars().all(is_character) {
                return Err(NoPayload::NotXml);
            }
            if let Some(declared) = attribute.key.as_namespace_binding() {
                // The reader takes names of namespaces as they are written: escaped or not, they would be two to it.
                let is_empty_prefix = value.is_empty() && matches!(declared, PrefixDeclaration::Named(_));
                if is_empty_prefix || *value != *attribute.value {
                    return Err(NoPayload::NotXml);
                }
                continue;
            }
            let (namespace, name) = resolver.resolve_attribute(attribute.key);
            let (namespace, name) = (name_of(&namespace)?, name.as_ref());
            if let Some(namespace) = namespace {
                qualified.push((namespace, name.to_owned()));
            }
            match (namespace, name) {
                (Some(SCHEMA_INSTANCE), "nil") => {
                    own.is_nil = match value.trim_matches(is_space) {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(NoPayload::Ambiguous("nil is neither true nor false")),
                    }
                }
                (Some(SCHEMA_INSTANCE | XML), _) => {}
                (Some(ENCODING), "ref") => own.is_reference = true,
                _ => {
                    own.is_reference |= namespace.is_none() && name == "href" && value.starts_with('#');
                    own.names.push(name.into());
                }
            }
        }
        // One name by two prefixes of one namespace.
        qualified.sort_unstable();
        if qualified.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(NoPayload::NotXml);
        }
        Ok(own)
    }
}

/// A name's namespace; a prefix that stands for none is an error.
fn name_of<'a>(namespace: &ResolveResult<'a>) -> Result<Option<&'a str>, NoPayload> {
    match namespace {
        ResolveResult::Unbound | ResolveResult::Bound(Namespace("")) => Ok(None),
        ResolveResult::Bound(Namespace(name)) => Ok(Some(name)),
        ResolveResult::Unknown(_) => Err(NoPayload::NotXml),
    }
}

fn is_declaration(declaration: &BytesDecl<'_>, text: &str) -> bool {
    DECLARATION.captures(declaration).is_some_and(|found| {
        let is_ascii = found.iter().skip(1).any(|part| part.is_some());
        !is_ascii || text.is_ascii()
    })
}

/// What XML 1.0 calls white space.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn is_blank(text: &str) -> bool {
    text.chars().all(is_space)
}

/// May it be in a document? (XML 1.0, 2.2)
fn is_character(character: char) -> bool {
    character >= ' ' && !matches!(character, '\u{fffe}' | '\u{ffff}') || is_space(character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn message(namespace: &str, inside: &str) -> String {
        format!(
            "<?xml version='1.0'?><s:Envelope xmlns:s='{namespace}'><s:Header/><s:Body>{inside}</s:Body></s:Envelope>"
        )
    }

    fn read(inside: &str) -> Result<Content, NoPayload> {
        payload(message(SOAP[0], inside).as_bytes())
    }

    fn is_ambiguous(read: &Result<Content, NoPayload>) -> bool {
        matches!(read, Err(NoPayload::Ambiguous(_)))
    }

    #[test]
    fn the_payload_is_a_map_of_its_children() {
        let inside = "<m:Add xmlns:m='urn:m'>\n <m:intA>1</m:intA><!-- between --><intB/>\
            <deep><a>y &lt;&#65;&gt;</a><b><![CDATA[<z>]]></b><c x='1'>d</c></deep></m:Add>";
        let wanted = json!({ "intA": "1", "intB": "", "deep": { "a": "y <A>", "b": "<z>", "c": "d" } });
        for namespace in SOAP {
            let read = payload(message(namespace, inside).as_bytes()).unwrap();
            assert!(read.is(&wanted), "{read:?}");
        }
        for (inside, wanted) in [
            ("<Add>text</Add>", json!({})),
            ("<Add><!-- none --></Add>", json!({})),
            ("<Add><a>1</a></Add>", json!({ "a": "1" })),
            ("<Add><a xmlns:i='http://www.w3.org/2001/XMLSchema-instance' i:nil='1'/></Add>", json!({ "a": null })),
            ("<Add><a xmlns:i='http://www.w3.org/2001/XMLSchema-instance' i:nil='false'/></Add>", json!({ "a": "" })),
            ("<Add><a>\r\n\r</a></Add>", json!({ "a": "\n\n" })),
            ("<Add><a>&#13;</a></Add>", json!({ "a": "\r" })),
        ] {
            let read = read(inside).unwrap();
            assert!(read.is(&wanted), "{read:?}");
        }
        let bom = format!("\u{feff}{}", message(SOAP[0], "<Add/>"));
        assert!(payload(bom.as_bytes()).is_ok());
        for encoding in ["utf-8", "UTF8", "US-ASCII"] {
            let text =
                message(SOAP[0], "<Add/>").replace("?>", &format!(" encoding=\"{encoding}\" standalone='yes' ?>"));
            assert!(payload(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let soap = SOAP[0];
        let fine = message(soap, "<a/>");
        let declared = |declaration: &str| fine.replace("<?xml version='1.0'?>", declaration);
        let table = [
            ("<a/>".to_owned(), NoPayload::NoBody),
            (message("urn:other", "<Add/>"), NoPayload::NoBody),
            (message(soap, ""), NoPayload::NoBody),
            (message(soap, "<!-- <a/> -->"), NoPayload::NoBody),
            (format!("<E xmlns='{soap}'><Header><Body><x/></Body></Header></E>"), NoPayload::NoBody),
            (format!("<Envelope xmlns='{soap}'><Header><Body><x/></Body></Header></Envelope>"), NoPayload::NoBody),
            (format!("<x><Envelope xmlns='{soap}'><Body><x/></Body></Envelope></x>"), NoPayload::NoBody),
            ("<Envelope><Body><x/></Body></Envelope>".to_owned(), NoPayload::NoBody),
            (String::new(), NoPayload::NotXml),
            ("{}".into(), NoPayload::NotXml),
            ("<a>".into(), NoPayload::NotXml),
            (format!("{fine}<x/>"), NoPayload::NotXml),
            (format!("{fine} x"), NoPayload::NotXml),
            (format!("{fine}\u{a0}"), NoPayload::NotXml),
            (format!("{fine}<![CDATA[]]>"), NoPayload::NotXml),
            (format!("{fine}&#32;"), NoPayload::NotXml),
            (format!(" {fine}"), NoPayload::NotXml),
            (format!("\u{feff}\u{feff}{fine}"), NoPayload::NotXml),
            (fine.replace("</s:Envelope>", ""), NoPayload::NotXml),
            (declared("<?xml version='1.1'?>"), NoPayload::NotXml),
            (declared("<?xml version='1.0' encoding='utf-7'?>"), NoPayload::NotXml),
            (declared("<?xml version='1.0' encoding='utf-16'?>"), NoPayload::NotXml),
            (declared("<?xml version='1.0' encoding='iso-8859-1'?>"), NoPayload::NotXml),
            (declared("<?xml version='1.0' encoding='utf-8' encoding='utf-7'?>"), NoPayload::NotXml),
            (declared("<?xml encoding='utf-8'?>"), NoPayload::NotXml),
            (declared("<?xml version='1.0'?><?xml version='1.0'?>"), NoPayload::NotXml),
            (format!("{}<!-- \u{e4} -->", declared("<?xml version='1.0' encoding='us-ascii'?>")), NoPayload::NotXml),
            (declared("<!DOCTYPE a [<!ENTITY x 'y'>]>"), NoPayload::Entities),
            (declared("<!doctype a>"), NoPayload::Entities),
            (message(soap, "<a>&x;</a>"), NoPayload::Entities),
            (message(soap, &format!("{}{}", "<a>".repeat(100), "</a>".repeat(100))), NoPayload::TooLarge),
            (message(soap, &"<a/>".repeat(MAX_ELEMENTS)), NoPayload::TooLarge),
        ];
        for (text, problem) in table {
            assert_eq!(payload(text.as_bytes()), Err(problem), "{text}");
        }
        for encoded in [fine.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>(), b"\xff\xfe<\0".to_vec()] {
            assert_eq!(payload(&encoded), Err(NoPayload::NotXml));
        }
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for inside in [
            "<a></b>",
            "<a></a b='1'>",
            "<a b='1' b='2'/>",
            "<a xmlns:x='u' xmlns:y='u' x:b='1' y:b='2'/>",
            "<a b='1'c='2'/>",
            "<a b=1/>",
            "<a b/>",
            "<a b='<'/>",
            "<a b='&x;'/>",
            "<a b='&#1;'/>",
            "<a/ >",
            "<1/>",
            "<a\"b/>",
            "<a:b:c xmlns:a='u'/>",
            "<x:a/>",
            "<a x:b='1'/>",
            "<a xmlns:x=''/>",
            "<a xmlns:x='u&amp;'/>",
            "<a>&</a>",
            "<a>&amp</a>",
            "<a>&#0;</a>",
            "<a>&#1;</a>",
            "<a>&#xD800;</a>",
            "<a>&#x110000;</a>",
            "<a>&#X41;</a>",
            "<a>]]></a>",
            "<a>\u{0}</a>",
            "<a>\u{8}</a>",
            "<a>\u{ffff}</a>",
            "<a><!-- -- --></a>",
            "<a><?xml version='1.0'?></a>",
            "<!ELEMENT a/>",
        ] {
            assert_eq!(read(inside), Err(NoPayload::NotXml), "{inside}");
        }
    }

    #[test]
    fn what_others_may_read_otherwise_is_refused() {
        let soap = SOAP[0];
        for text in [
            format!("<Envelope xmlns='{soap}'><Body><a/></Body><Body><b/></Body></Envelope>"),
            format!("<Envelope xmlns='{soap}'><Body><a/></Body><Header/></Envelope>"),
            format!("<Envelope xmlns='{soap}'><Header/><Header/><Body><a/></Body></Envelope>"),
            format!("<Envelope xmlns='{soap}'><Body><a/></Body><x xmlns=''/></Envelope>"),
            format!("<Envelope xmlns='{soap}'><Body xmlns='urn:x'><b/></Body><Body><a/></Body></Envelope>"),
            format!("<Envelope xmlns='{soap}'><Body xmlns='{}'><b/></Body><Body><a/></Body></Envelope>", SOAP[1]),
            format!("<Envelope xmlns='{soap}'>x<Body><a/></Body></Envelope>"),
            message(soap, "<a/><b/>"),
            message(soap, "x<a/>"),
            message(soap, "<a/>&#65;"),
            message(soap, "<a/><![CDATA[x]]>"),
            format!("<?x y?>{}", message(soap, "<a/>").replace("<?xml version='1.0'?>", "")),
        ] {
            assert!(is_ambiguous(&payload(text.as_bytes())), "{text}");
        }
        for inside in [
            "12<!-- -->34",
            "<!-- 1 -->12",
            "<!-- 1 -->",
            "12<![CDATA[34]]>",
            "<![CDATA[12]]>34",
            " <![CDATA[12]]>",
            "<![CDATA[12]]><![CDATA[34]]>",
            "12<?x y?>34",
            "12<b/>",
            "<b/>12",
            "<b/><x:b xmlns:x='urn:x'/>",
            "<b/><c/><b xmlns='urn:x'/>",
            "<b href='#1'/>",
            "<b x:ref='1' xmlns:x='http://www.w3.org/2003/05/soap-encoding'/>",
            "<x:include href='f' xmlns:x='http://www.w3.org/2001/XInclude'/>",
            "<x:Include href='cid:1' xmlns:x='http://www.w3.org/2004/08/xop/include'/>",
            "<b xmlns:i='http://www.w3.org/2001/XMLSchema-instance' i:nil='true'>12</b>",
            "<b xmlns:i='http://www.w3.org/2001/XMLSchema-instance' i:nil='maybe'/>",
        ] {
            let read = read(&format!("<Add><a>{inside}</a></Add>"));
            assert!(is_ambiguous(&read), "{inside}: {read:?}");
        }
    }

    #[test]
    fn attributes_and_namespaces_without_end_cost_little() {
        let many = |piece: &dyn Fn(usize) -> String| (0..50_000).map(piece).collect::<String>();
        let started = std::time::Instant::now();
        let attributes = format!("<a {}/>", many(&|n| format!(" a{n}=''")));
        assert!(read(&attributes).is_ok());
        assert!(read(&format!("<a {}/>", many(&|n| format!(" xmlns:a{n}='u'")))).is_err());
        assert!(read(&format!("<a xmlns:x='u' {}/>", many(&|n| format!(" x:a{n}=''")))).is_ok());
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    /// The same as another reader has it: the text of leaves, and elements by name.
    fn as_others_read_it(element: roxmltree::Node<'_, '_>, is_payload: bool) -> Value {
        let children: Vec<_> = element.children().filter(roxmltree::Node::is_element).collect();
        if children.is_empty() && !is_payload {
            return element.children().filter_map(|node| node.text()).collect::<String>().into();
        }
        let mut members: Map<String, Value> = Map::new();
        for child in children {
            let values = members.entry(child.tag_name().name()).or_insert_with(|| json!([]));
            values.as_array_mut().unwrap().push(as_others_read_it(child, false));
        }
        members.into()
    }

    fn as_it_is_read(content: &Content, names: &[&str]) -> Value {
        let Some(text) = content.text() else {
            let named = names.iter().filter_map(|name| {
                let values: Vec<_> = content.named(name).unwrap().map(|value| as_it_is_read(value, names)).collect();
                (!values.is_empty()).then(|| ((*name).to_owned(), values.into()))
            });
            return named.collect::<Map<_, _>>().into();
        };
        text.into()
    }

    fn any_element() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "x",
            " ",
            "\r\n",
            "&lt;",
            "&#65;",
            "&#x20ac;",
            "ä",
            "<![CDATA[<c>]]>",
            "<!-- - -->",
            "]]",
            ">",
            "'",
            "&#13;",
        ]);
        let leaf = prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat());
        let name = || prop::sample::select(vec!["a", "b", "n:a", "n:c"]);
        let attributes = prop::sample::select(vec![
            "",
            " d='1'",
            " n:d='&amp;' e=\"'\"",
            " xmlns='urn:d'",
            " xmlns:n='urn:o'",
            "\n",
        ]);
        let element =
            |(name, attributes, inside): (&str, &str, String)| format!("<{name}{attributes}>{inside}</{name} >");
        (name(), attributes.clone(), leaf).prop_map(element).prop_recursive(3, 12, 4, move |inner| {
            let blank = prop::sample::select(vec!["", "\n ", "<!-- x -->", "x"]);
            let inside = prop::collection::vec((inner, blank), 1..4);
            let inside = inside.prop_map(|all| all.into_iter().map(|(inner, blank)| inner + blank).collect::<String>());
            (name(), attributes.clone(), inside).prop_map(element)
        })
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(inside in "(<a>|</a>|<b c='d'/>|&lt;|&#1;|&x;|<!--|-->|<!\\[CDATA\\[|\\]\\]>|text|<|>|\u{0}|\"){0,12}") {
            if read(&inside).is_ok() {
                prop_assert!(roxmltree::Document::parse(&message(SOAP[0], &inside)).is_ok());
            }
            let _ = payload(inside.as_bytes());
        }

        #[test]
        fn what_is_checked_is_what_another_reader_has(element in any_element()) {
            let text = message(SOAP[0], &format!("<p xmlns:n='urn:n'>{element}</p>"));
            let document = roxmltree::Document::parse(&text);
            match payload(text.as_bytes()) {
                Ok(content) => {
                    let document = document.unwrap();
                    let payload = document.descendants().find(|node| node.tag_name().name() == "p").unwrap();
                    prop_assert_eq!(as_it_is_read(&content, &["a", "b", "c"]), as_others_read_it(payload, true));
                }
                Err(NoPayload::NotXml) => prop_assert!(document.is_err()),
                Err(why) => prop_assert!(document.is_ok() && matches!(why, NoPayload::Ambiguous(_)), "{:?}", why),
            }
        }
    }
}
