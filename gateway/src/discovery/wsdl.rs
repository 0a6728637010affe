//! WSDL 1.1: which operations a service has, and where it is called.
//!
//! In: a document. Out: its services, operations and addresses. What always holds: nothing outside of the document is
//! looked up, imports included; DTDs and entities are refused; depth and number of elements are bounded. What is missing
//! is left out.

use std::collections::HashMap;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use quick_xml::{NsReader, XmlVersion};
use serde::Serialize;
use utoipa::ToSchema;

use super::Document;
use crate::request::media::is_readable_charset;
use crate::request::segments;

const WSDL: &str = "http://schemas.xmlsoap.org/wsdl/";
/// Bindings of SOAP 1.1 and 1.2.
const SOAP: [&str; 2] = ["http://schemas.xmlsoap.org/wsdl/soap/", "http://schemas.xmlsoap.org/wsdl/soap12/"];
/// Elements within each other, at the most.
const MOST_DEPTH: usize = 64;
/// Elements, at the most.
const MOST_ELEMENTS: usize = 100_000;
/// Attributes of an element, at the most.
const MOST_ATTRIBUTES: usize = 64;
const UNKNOWN: &str = "Unknown";
const ENTITIES: &str = "DTDs and entities are not allowed";

/// What a WSDL describes, as clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WsdlParsed)]
pub struct Parsed {
    /// Of the first service.
    pub service_name: String,
    /// What its names belong to.
    pub target_namespace: String,
    /// Its operations, each once.
    pub operations: Vec<Operation>,
    /// How many operations there are.
    pub endpoints_count: usize,
    /// Paths that it is called at by SOAP, each once.
    #[serde(skip)]
    pub addresses: Vec<String>,
}

/// Something that a service does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WsdlOperation)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// What `SOAPAction` must be, of SOAP 1.1 where it has both; empty: it has none.
    pub soap_action: String,
    /// The message that it takes.
    pub input_message: String,
    /// The message that it gives.
    pub output_message: String,
}

/// A WSDL that an upstream gave.
#[derive(Debug)]
pub struct Description {
    /// The document.
    pub text: String,
    /// What it describes.
    pub parsed: Parsed,
}

impl Document for Description {
    const ACCEPT: &'static str = "text/xml, application/wsdl+xml, application/xml, */*;q=0.8";
    const QUESTION: Option<&'static str> = None;

    fn read(answer: &[u8]) -> Result<Self, String> {
        let parsed = parse(answer)?;
        Ok(Self { text: text(answer)?.to_owned(), parsed })
    }

    fn weight(&self) -> u64 {
        // What is described is copied from the text, once.
        2 * self.text.len() as u64 + (self.parsed.operations.len() * size_of::<Operation>()) as u64
    }
}

fn text(wsdl: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(wsdl).map_err(|_| "it must be UTF-8".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// What the text of a WSDL describes.
///
/// # Errors
/// Why it is none.
pub fn parse(wsdl: &[u8]) -> Result<Parsed, String> {
    let mut source = NsReader::from_str(text(wsdl)?);
    source.config_mut().expand_empty_elements = true;
    let (mut reading, mut elements) = (Reading::default(), 0_usize);
    loop {
        let (namespace, event) = source.read_resolved_event().map_err(|error| error.to_string())?;
        let depth = reading.open.len();
        match event {
            Event::Start(start) => {
                elements += 1;
                if depth == MOST_DEPTH || elements > MOST_ELEMENTS {
                    return Err(format!("more than {MOST_DEPTH} levels or {MOST_ELEMENTS} elements"));
                }
                if depth == 0 && elements > 1 {
                    return Err("more than one root element".to_owned());
                }
                let kind = Kind::of(&namespace, &start)?;
                reading.begin(kind, &attributes(&start)?);
                reading.open.push(kind);
            }
            Event::End(_) => drop(reading.open.pop()),
            Event::Text(text) if depth == 0 && !text.xml10_content().trim().is_empty() => {
                return Err("text outside of the root element".to_owned());
            }
            Event::GeneralRef(reference) => {
                let is_character = reference.resolve_char_ref().map_err(|error| error.to_string())?.is_some();
                if !is_character && !["lt", "gt", "amp", "apos", "quot"].contains(&&*reference.xml10_content()) {
                    return Err(ENTITIES.to_owned());
                }
            }
            Event::Decl(declaration) => {
                let encoding = declaration.encoding().transpose().map_err(|error| error.to_string())?;
                if encoding.is_some_and(|encoding| !is_readable_charset(&encoding)) {
                    return Err("it must be UTF-8".to_owned());
                }
            }
            Event::DocType(_) => return Err(ENTITIES.to_owned()),
            Event::Eof if depth > 0 || elements == 0 => return Err("it ends too early".to_owned()),
            Event::Eof => return reading.end(),
            Event::Text(_) | Event::CData(_) | Event::Comment(_) | Event::PI(_) | Event::Empty(_) => {}
        }
    }
}

/// An element, as far as it says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Definitions,
    PortType,
    Binding,
    Service,
    Port,
    Operation,
    Input,
    Output,
    SoapOperation { is_first_version: bool },
    SoapAddress,
    Other,
}

impl Kind {
    /// What is not of a WSDL may still be the root, for whoever looks at it to say so.
    fn of(namespace: &ResolveResult<'_>, start: &BytesStart<'_>) -> Result<Self, String> {
        let bound = match namespace {
            ResolveResult::Bound(Namespace(name)) => Some(*name),
            ResolveResult::Unbound => None,
            ResolveResult::Unknown(_) => return Err("a prefix that is not declared".to_owned()),
        };
        let name = start.local_name();
        let soap = SOAP.iter().position(|own| bound == Some(*own));
        Ok(match (name.as_ref(), soap) {
            ("operation", Some(version)) => Self::SoapOperation { is_first_version: version == 0 },
            ("address", Some(_)) => Self::SoapAddress,
            // Some write WSDLs without namespaces.
            (name, None) if bound.is_none_or(|bound| bound == WSDL) => match name {
                "definitions" => Self::Definitions,
                "portType" => Self::PortType,
                "binding" => Self::Binding,
                "service" => Self::Service,
                "port" => Self::Port,
                "operation" => Self::Operation,
                "input" => Self::Input,
                "output" => Self::Output,
                _ => Self::Other,
            },
            _ => Self::Other,
        })
    }
}

type Attributes = HashMap<String, String>;

fn attributes(start: &BytesStart<'_>) -> Result<Attributes, String> {
    let mut attributes = Attributes::new();
    for (count, attribute) in start.attributes().enumerate() {
        if count == MOST_ATTRIBUTES {
            return Err(format!("an element with more than {MOST_ATTRIBUTES} attributes"));
        }
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|_| ENTITIES.to_owned())?;
        attributes.insert(attribute.key.as_ref().to_owned(), value.into_owned());
    }
    Ok(attributes)
}

/// The part of a name behind its prefix.
fn local(name: &str) -> String {
    name.rsplit_once(':').map_or(name, |(_, local)| local).to_owned()
}

/// What has been read.
#[derive(Default)]
struct Reading {
    open: Vec<Kind>,
    has_root: bool,
    is_described: bool,
    name: String,
    target_namespace: String,
    service: Option<String>,
    /// The port type or the type of the binding that is open.
    of: String,
    /// By their port types.
    operations: Vec<(String, Operation)>,
    /// The operation that is open in a binding.
    bound: String,
    /// By port type and operation: whether it is of SOAP 1.1, and what it is.
    actions: HashMap<(String, String), (bool, String)>,
    addresses: Vec<String>,
}

impl Reading {
    fn begin(&mut self, kind: Kind, attributes: &Attributes) {
        let given = |name: &str| attributes.get(name).cloned().unwrap_or_default();
        match (self.open.as_slice(), kind) {
            ([], Kind::Definitions) => {
                self.has_root = true;
                self.name = given("name");
                self.target_namespace = given("targetNamespace");
            }
            ([Kind::Definitions], Kind::PortType) => {
                self.is_described = true;
                self.of = given("name");
            }
            ([Kind::Definitions], Kind::Binding) => self.of = local(&given("type")),
            ([Kind::Definitions], Kind::Service) => {
                self.is_described = true;
                self.service.get_or_insert_with(|| given("name"));
            }
            ([Kind::Definitions, Kind::PortType], Kind::Operation) => {
                let operation = Operation { name: given("name"), ..Operation::default() };
                self.operations.push((self.of.clone(), operation));
            }
            ([Kind::Definitions, Kind::PortType, Kind::Operation], Kind::Input | Kind::Output) => {
                if let Some((_, operation)) = self.operations.last_mut() {
                    let message = local(&given("message"));
                    let place =
                        if kind == Kind::Input { &mut operation.input_message } else { &mut operation.output_message };
                    *place = message;
                }
            }
            ([Kind::Definitions, Kind::Binding], Kind::Operation) => self.bound = given("name"),
            ([Kind::Definitions, Kind::Binding, Kind::Operation], Kind::SoapOperation { is_first_version }) => {
                let action = (is_first_version, given("soapAction"));
                let known = self.actions.entry((self.of.clone(), self.bound.clone())).or_default();
                // One that says something before one that doesn't, then the older version.
                if (!action.1.is_empty(), action.0) > (!known.1.is_empty(), known.0) {
                    *known = action;
                }
            }
            ([Kind::Definitions, Kind::Service, Kind::Port], Kind::SoapAddress) => {
                let path = path(&given("location"));
                if let Some(path) = path.filter(|path| !self.addresses.contains(path)) {
                    self.addresses.push(path);
                }
            }
            _ => {}
        }
    }

    fn end(mut self) -> Result<Parsed, String> {
        if !self.has_root {
            return Err("its root must be definitions".to_owned());
        }
        if !self.is_described {
            return Err("it has neither a service nor a portType".to_owned());
        }
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut operations: Vec<Operation> = Vec::new();
        for (of, mut operation) in self.operations {
            let key = (of, operation.name.clone());
            operation.soap_action = self.actions.remove(&key).map(|(_, action)| action).unwrap_or_default();
            // Port types of other bindings repeat them.
            match places.get(&operation.name).and_then(|place| operations.get_mut(*place)) {
                Some(known) if known.soap_action.is_empty() && !operation.soap_action.is_empty() => *known = operation,
                Some(_) => {}
                None => {
                    places.insert(operation.name.clone(), operations.len());
                    operations.push(operation);
                }
            }
        }
        let named = |name: &String| !name.is_empty();
        Ok(Parsed {
            service_name: self
                .service
                .filter(named)
                .or(Some(self.name).filter(named))
                .unwrap_or_else(|| UNKNOWN.into()),
            target_namespace: self.target_namespace,
            endpoints_count: operations.len(),
            operations,
            addresses: self.addresses,
        })
    }
}

/// The path of an address, decoded.
fn path(location: &str) -> Option<String> {
    let uri: http::Uri = location.parse().ok()?;
    let segments = segments(uri.path()).ok()?;
    Some(format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// As services write them: twice by SOAP, once by GET.
    const CALCULATOR: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<wsdl:definitions xmlns:wsdl="http://schemas.xmlsoap.org/wsdl/" xmlns:tns="http://tempuri.org/"
    xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:soap12="http://schemas.xmlsoap.org/wsdl/soap12/"
    xmlns:http="http://schemas.xmlsoap.org/wsdl/http/" targetNamespace="http://tempuri.org/">
  <wsdl:documentation>A calculator &amp; more<operation name="not one"/></wsdl:documentation>
  <wsdl:types><schema xmlns="http://www.w3.org/2001/XMLSchema"><element name="service"/></schema></wsdl:types>
  <wsdl:message name="AddIn"/>
  <wsdl:portType name="CalculatorHttpGet">
    <wsdl:operation name="Add"><wsdl:input message="tns:AddGetIn"/><wsdl:output message="tns:AddGetOut"/></wsdl:operation>
  </wsdl:portType>
  <wsdl:portType name="CalculatorSoap">
    <wsdl:operation name="Add"><wsdl:input message="tns:AddIn"/><wsdl:output message="tns:AddOut"/></wsdl:operation>
    <wsdl:operation name="Ping"><wsdl:input message="PingIn"/></wsdl:operation>
  </wsdl:portType>
  <wsdl:binding name="CalculatorSoap12" type="tns:CalculatorSoap">
    <soap12:binding transport="http://schemas.xmlsoap.org/soap/http"/>
    <wsdl:operation name="Add"><soap12:operation soapAction="http://tempuri.org/Add12"/></wsdl:operation>
    <wsdl:operation name="Ping"><soap12:operation soapAction="urn:ping12"/></wsdl:operation>
  </wsdl:binding>
  <wsdl:binding name="CalculatorSoap" type="tns:CalculatorSoap">
    <wsdl:operation name="Add"><soap:operation soapAction="http://tempuri.org/Add"/>
      <wsdl:input><soap:body use="literal"/></wsdl:input></wsdl:operation>
    <wsdl:operation name="Ping"><soap:operation soapAction=""/></wsdl:operation>
  </wsdl:binding>
  <wsdl:binding name="CalculatorHttpGet" type="tns:CalculatorHttpGet">
    <wsdl:operation name="Add"><http:operation location="/Add"/></wsdl:operation>
  </wsdl:binding>
  <wsdl:service name="Calculator">
    <wsdl:port name="a" binding="tns:CalculatorSoap"><soap:address location="http://host:81/base/my%20calc.asmx?x=y"/></wsdl:port>
    <wsdl:port name="b" binding="tns:CalculatorSoap12"><soap12:address location="https://host/base/my%20calc.asmx"/></wsdl:port>
    <wsdl:port name="c" binding="tns:CalculatorHttpGet"><http:address location="http://host/get"/></wsdl:port>
    <wsdl:port name="d" binding="tns:CalculatorSoap"><soap:address location="REPLACE WITH ACTUAL URL"/></wsdl:port>
  </wsdl:service>
</wsdl:definitions>"#;

    #[test]
    fn operations_are_told_once_with_their_actions_and_messages() {
        let parsed = parse(CALCULATOR.as_bytes()).unwrap();
        assert_eq!(parsed.addresses, ["/base/my calc.asmx"]);
        assert_eq!(
            serde_json::to_value(parsed).unwrap(),
            json!({
                "service_name": "Calculator", "target_namespace": "http://tempuri.org/", "endpoints_count": 2,
                "operations": [
                    { "name": "Add", "soap_action": "http://tempuri.org/Add", "input_message": "AddIn", "output_message": "AddOut" },
                    { "name": "Ping", "soap_action": "urn:ping12", "input_message": "PingIn", "output_message": "" },
                ],
            })
        );
    }

    #[test]
    fn little_is_enough() {
        let parsed =
            parse(b"<definitions name='a'><portType name='p'><operation name='o'/></portType></definitions>").unwrap();
        assert_eq!((&*parsed.service_name, parsed.endpoints_count), ("a", 1));
        let bom = "\u{feff}<d:definitions xmlns:d='http://schemas.xmlsoap.org/wsdl/'><d:service/></d:definitions>";
        let description = Description::read(bom.as_bytes()).unwrap();
        assert_eq!((&*description.parsed.service_name, description.text.starts_with("<d")), (UNKNOWN, true));
    }

    #[test]
    fn hostile_texts_are_refused_before_they_take_long() {
        let within = |inside: &str| format!("<definitions><service/>{inside}</definitions>");
        let mut laughs = "<!DOCTYPE a [<!ENTITY a 'ha'>".to_owned();
        for (name, before) in ('b'..='z').zip('a'..) {
            let _ = write!(laughs, "<!ENTITY {name} '{}'>", format!("&{before};").repeat(10));
        }
        let laughs = format!("{laughs}]>{}", within("&z;"));
        let many = (0..200_000).fold(String::new(), |mut text, n| {
            let _ = write!(text, " a{n}='u'");
            text
        });
        let files = "<!DOCTYPE a SYSTEM 'file:///etc/passwd'>";
        for (what, text, reason) in [
            ("nothing", String::new(), "ends too early"),
            ("no XML", "{}".to_owned(), "text outside"),
            ("another root", "<description xmlns='http://www.w3.org/ns/wsdl'/>".to_owned(), "root must be definitions"),
            ("a page", "<!DOCTYPE html><html></html>".to_owned(), ENTITIES),
            ("of another namespace", "<definitions xmlns='urn:a'><service/></definitions>".to_owned(), "root must be"),
            ("nothing in it", "<definitions/>".to_owned(), "neither a service nor a portType"),
            ("a service too deep", within("").replace("<service/>", "<types><service/></types>"), "neither"),
            ("billion laughs", laughs, ENTITIES),
            ("files", format!("{files}{}", within("")), ENTITIES),
            ("an entity", within("&file;"), ENTITIES),
            ("an entity in an attribute", within("<service name='&file;'/>"), ENTITIES),
            ("deep", within(&"<a>".repeat(1_000_000)), "more than 64 levels"),
            ("many elements", within(&"<a/>".repeat(MOST_ELEMENTS)), "elements"),
            ("many attributes", within(&format!("<a{many}/>")), "attributes"),
            ("many namespaces", within(&format!("<a{}/>", many.replace(" a", " xmlns:a"))), "namespace"),
            ("twice", within("<a b='' b=''/>"), ""),
            ("two roots", format!("{}<b/>", within("")), "more than one root"),
            ("text behind", format!("{}x", within("")), "text outside"),
            ("half of it", "<definitions><service/>".to_owned(), "ends too early"),
            ("crossed", within("<a><b></a></b>"), ""),
            ("no prefix", within("<a:b/>"), "not declared"),
            ("another encoding", format!("<?xml version='1.0' encoding='UTF-16'?>{}", within("")), "UTF-8"),
        ] {
            let begun = Instant::now();
            let error = parse(text.as_bytes()).expect_err(what);
            assert!(error.contains(reason), "{what}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(60), "{what} took {:?}", begun.elapsed());
        }
        assert!(parse(b"<definitions>\xe9</definitions>").unwrap_err().contains("UTF-8"));
    }

    proptest! {
        #[test]
        fn any_text_has_an_answer(text in "(<definitions>|</definitions>|<service/>|<portType|name='|'|&lt;|&x;|<!--|-->|<!|\\[|\\]|>|<|text|\u{0}){0,12}") {
            let _ = parse(text.as_bytes());
        }
    }
}
