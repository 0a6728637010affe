//! The payload of a SOAP message as a value (reference: gateway behaviour 16.5).
//!
//! In: a body. Out: the first element inside the SOAP `Body`, as a map of its children by local name: leaves are text,
//! nested elements nested maps, of a repeated name the last wins. DTDs and entities are refused, depth and number of
//! elements are bounded.

use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use serde_json::{Map, Value};

use crate::request::media::is_readable_charset;

/// Namespaces of SOAP 1.1 and 1.2.
const SOAP: [&str; 2] = ["http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"];
/// Elements within each other, at the most.
const MAX_DEPTH: usize = 64;
/// Elements of a message, at the most.
const MAX_ELEMENTS: usize = 10_000;

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
}

impl From<quick_xml::Error> for NoPayload {
    fn from(_: quick_xml::Error) -> Self {
        Self::NotXml
    }
}

/// An element of the payload that has not ended.
struct Open {
    name: String,
    children: Map<String, Value>,
    text: String,
}

/// Reads a message.
///
/// # Errors
/// See [`NoPayload`].
pub fn payload(body: &[u8]) -> Result<Value, NoPayload> {
    let text = std::str::from_utf8(body).map_err(|_| NoPayload::NotXml)?;
    let mut reader = NsReader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    reader.config_mut().expand_empty_elements = true;
    let (mut depth, mut elements) = (0_usize, 0_usize);
    let mut is_in_body = false;
    let mut open: Vec<Open> = Vec::new();
    let mut payload = None;
    loop {
        match reader.read_resolved_event()? {
            (namespace, Event::Start(start)) => {
                elements += 1;
                if depth == MAX_DEPTH || elements > MAX_ELEMENTS {
                    return Err(NoPayload::TooLarge);
                }
                if depth == 0 && elements > 1 || !has_sound_attributes(&start) {
                    return Err(NoPayload::NotXml);
                }
                let name = start.local_name();
                if !open.is_empty() || (is_in_body && depth == 2 && payload.is_none()) {
                    let name = name.as_ref().to_owned();
                    open.push(Open { name, children: Map::new(), text: String::new() });
                } else if depth == 1 {
                    is_in_body = name.as_ref() == "Body" && is_soap(&namespace);
                }
                depth += 1;
            }
            (_, Event::End(_)) => {
                depth -= 1;
                if let Some(Open { name, children, text }) = open.pop() {
                    match open.last_mut() {
                        Some(parent) if children.is_empty() => drop(parent.children.insert(name, text.into())),
                        Some(parent) => drop(parent.children.insert(name, children.into())),
                        None => payload = Some(children.into()),
                    }
                }
            }
            (_, Event::Text(piece)) => note(depth, &mut open, &piece.xml10_content())?,
            (_, Event::CData(piece)) => note(depth, &mut open, &piece.xml10_content())?,
            (_, Event::GeneralRef(reference)) => {
                let mut buffer = [0; 4];
                let text = match (reference.resolve_char_ref()?, reference.xml10_content().as_ref()) {
                    (Some(character), _) => character.encode_utf8(&mut buffer),
                    (None, "lt") => "<",
                    (None, "gt") => ">",
                    (None, "amp") => "&",
                    (None, "apos") => "'",
                    (None, "quot") => "\"",
                    (None, _) => return Err(NoPayload::Entities),
                };
                note(depth, &mut open, text)?;
            }
            (_, Event::Decl(declaration)) => {
                if let Some(encoding) = declaration.encoding()
                    && !encoding.is_ok_and(|encoding| is_readable_charset(&encoding))
                {
                    return Err(NoPayload::NotXml);
                }
            }
            (_, Event::DocType(_)) => return Err(NoPayload::Entities),
            (_, Event::Comment(_) | Event::PI(_) | Event::Empty(_)) => {}
            (_, Event::Eof) if depth > 0 || elements == 0 => return Err(NoPayload::NotXml),
            (_, Event::Eof) => return payload.ok_or(NoPayload::NoBody),
        }
    }
}

fn is_soap(namespace: &ResolveResult<'_>) -> bool {
    matches!(namespace, ResolveResult::Bound(Namespace(name)) if SOAP.contains(name))
}

fn has_sound_attributes(start: &BytesStart<'_>) -> bool {
    start.attributes().all(|attribute| attribute.is_ok())
}

/// Keeps text for the element it is in; outside of all there is none but white space.
fn note(depth: usize, open: &mut [Open], text: &str) -> Result<(), NoPayload> {
    if depth == 0 && !text.trim().is_empty() {
        return Err(NoPayload::NotXml);
    }
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn message(namespace: &str, inside: &str) -> String {
        format!(
            "<?xml version='1.0'?><s:Envelope xmlns:s='{namespace}'><s:Header/><s:Body>{inside}</s:Body></s:Envelope>"
        )
    }

    fn read(inside: &str) -> Result<Value, NoPayload> {
        payload(message(SOAP[0], inside).as_bytes())
    }

    #[test]
    fn the_payload_is_a_map_of_its_children() {
        let inside = "<m:Add xmlns:m='urn:m'>\n <m:intA>1</m:intA><intB/>\
            <deep><a>x</a><a>y &lt;&#65;<![CDATA[<z>]]></a></deep></m:Add><Other><c>1</c></Other>";
        let wanted = json!({ "intA": "1", "intB": "", "deep": { "a": "y <A<z>" } });
        for namespace in SOAP {
            assert_eq!(payload(message(namespace, inside).as_bytes()), Ok(wanted.clone()));
        }
        assert_eq!(read("<Add>text</Add>"), Ok(json!({})));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let soap = SOAP[0];
        let table = [
            ("<a/>".to_owned(), NoPayload::NoBody),
            (message("urn:other", "<Add/>"), NoPayload::NoBody),
            (message(soap, ""), NoPayload::NoBody),
            (format!("<E xmlns='{soap}'><Header><Body><x/></Body></Header></E>"), NoPayload::NoBody),
            (String::new(), NoPayload::NotXml),
            ("{}".into(), NoPayload::NotXml),
            (message(soap, "<a></b>"), NoPayload::NotXml),
            (message(soap, "<a b='1' b='2'/>"), NoPayload::NotXml),
            (format!("{}<x/>", message(soap, "<a/>")), NoPayload::NotXml),
            (format!("{} x", message(soap, "<a/>")), NoPayload::NotXml),
            (message(soap, "<a/>").replace("</s:Envelope>", ""), NoPayload::NotXml),
            (message(soap, "<a/>").replace("?>", " encoding='utf-7'?>"), NoPayload::NotXml),
            (message(soap, "<a>&x;</a>"), NoPayload::Entities),
            (
                format!("<!DOCTYPE a [<!ENTITY x 'y'>]>{}", message(soap, "<a/>").replace("<?xml version='1.0'?>", "")),
                NoPayload::Entities,
            ),
            (message(soap, &format!("{}{}", "<a>".repeat(100), "</a>".repeat(100))), NoPayload::TooLarge),
            (message(soap, &"<a/>".repeat(MAX_ELEMENTS)), NoPayload::TooLarge),
        ];
        for (text, problem) in table {
            assert_eq!(payload(text.as_bytes()), Err(problem), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(inside in "(<a>|</a>|<b c='d'/>|&lt;|&#1;|&x;|<!--|-->|<!\\[CDATA\\[|\\]\\]>|text|<|>|\u{0}){0,12}") {
            let _ = read(&inside);
            let _ = payload(inside.as_bytes());
        }
    }
}
