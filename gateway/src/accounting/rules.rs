//! Rules on rates: who may send how much in which time, set for all of the gateway (reference: platform API 15).
//!
//! In: stored rules. Out: for what is known of a request, the counters of the rules that apply to it, the most important
//! rule first. What always holds: a request is measured by every rule that applies; how many rules there are for other
//! users and APIs doesn't matter to it. `burst_allowance` lets nothing more through.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use mongodb::bson::{Bson, Document};
use smallvec::SmallVec;

use super::{Facts, limits::number};
use crate::{
    networks,
    store::{Counter, Span, braced},
};

/// To what a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Global,
    User,
    Api,
    Endpoint,
    Address(IpNet),
    /// Each user on each API, or on the one that is named.
    UserOfApi,
    /// Each user on each endpoint, or on the one that is named.
    UserOfEndpoint,
}

/// An endpoint, as rules name it: `GET /orders/v1/items/{id}`.
#[derive(Clone, Copy, Debug)]
pub struct EndpointName<'a> {
    /// The method of the endpoint.
    pub method: &'a str,
    /// `name/version` of its API.
    pub api: &'a str,
    /// Its path below that.
    pub path: &'a str,
}

impl EndpointName<'_> {
    fn is(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.method).and_then(|rest| rest.trim_start().strip_prefix('/'));
        let path = rest.and_then(|rest| rest.strip_prefix(self.api));
        path.is_some_and(|path| path == self.path || (path.is_empty() && self.path == "/"))
    }
}

/// A rule that is on.
#[derive(Debug)]
pub struct Rule {
    /// Its id, for those who ask why they were refused.
    pub id: Arc<str>,
    /// What its window is called.
    pub window: &'static str,
    scope: Scope,
    target: Box<str>,
    length: Duration,
    limit: u64,
}

fn text<'a>(document: &'a Document, member: &str) -> &'a str {
    document.get_str(member).unwrap_or_default()
}

impl Rule {
    /// `None`: it is off, or can't be read.
    fn of(document: &Document) -> Option<Self> {
        if !document.get_bool("enabled").unwrap_or(true) {
            return None;
        }
        let target = text(document, "target_identifier").trim();
        let scope = match text(document, "rule_type") {
            "global" => Scope::Global,
            "per_user" => Scope::User,
            "per_api" => Scope::Api,
            "per_endpoint" => Scope::Endpoint,
            "per_ip" => Scope::Address(networks::parse(target)?),
            "per_user_api" => Scope::UserOfApi,
            "per_user_endpoint" => Scope::UserOfEndpoint,
            _ => return None,
        };
        if target.is_empty() && matches!(scope, Scope::User | Scope::Api | Scope::Endpoint) {
            return None;
        }
        let (window, seconds) = match text(document, "time_window") {
            "second" => ("second", 1),
            "minute" => ("minute", 60),
            "hour" => ("hour", 3_600),
            "day" => ("day", 86_400),
            "month" => ("month", 30 * 86_400),
            _ => return None,
        };
        Some(Self {
            id: text(document, "rule_id").into(),
            window,
            scope,
            target: target.into(),
            length: Duration::from_secs(seconds),
            limit: number(document, "limit")?,
        })
    }

    /// The counter that measures this request; `None`: the rule doesn't apply.
    fn counter(&self, facts: &Facts<'_>) -> Option<Counter> {
        let is_target = |what: &str| self.target.is_empty() || *self.target == *what;
        let whose = match self.scope {
            Scope::Global => String::new(),
            Scope::User => facts.user.filter(|user| is_target(user)).map(|_| String::new())?,
            Scope::Api => facts.api.filter(|api| is_target(api)).map(|_| String::new())?,
            Scope::Endpoint => facts.endpoint.filter(|own| own.is(&self.target)).map(|_| String::new())?,
            Scope::Address(net) => {
                let address: IpAddr = facts.address.to_canonical();
                net.contains(&address).then(|| format!(":{address}"))?
            }
            Scope::UserOfApi => {
                let api = facts.api.filter(|api| is_target(api))?;
                format!(":{}:{api}", facts.user?)
            }
            Scope::UserOfEndpoint => {
                let own = facts.endpoint.filter(|own| self.target.is_empty() || own.is(&self.target))?;
                format!(":{}:{} {}{}", facts.user?, own.method, own.api, own.path)
            }
        };
        let key = format!("ratelimit:{}", braced(&format!("rule:{}{whose}", self.id)));
        Some(Counter::of_requests(key, Span::Sliding(self.length), self.limit))
    }
}

/// All rules that are on.
#[derive(Debug, Default)]
pub struct Rules {
    /// The most important first.
    rules: Vec<Rule>,
    /// Those of one user or API, by its name; of endpoints by their API.
    of: HashMap<Box<str>, Vec<usize>>,
    others: Vec<usize>,
}

impl Rules {
    /// Of stored rules; what can't be read is said and left out.
    pub fn of(documents: &[Arc<Document>]) -> Self {
        let priority = |document: &Document| match document.get("priority") {
            Some(Bson::Int32(number)) => (*number).into(),
            Some(Bson::Int64(number)) => *number,
            Some(Bson::Double(number)) => *number as i64,
            _ => 0,
        };
        let mut ordered: Vec<&Document> = documents.iter().map(AsRef::as_ref).collect();
        ordered.sort_by_key(|document| (std::cmp::Reverse(priority(document)), text(document, "rule_id")));
        let mut all = Self::default();
        for document in ordered {
            let Some(rule) = Rule::of(document) else {
                if document.get_bool("enabled").unwrap_or(true) {
                    tracing::warn!(
                        rule = text(document, "rule_id"),
                        "a rate limit rule can't be read and has no effect"
                    );
                }
                continue;
            };
            let index = all.rules.len();
            match rule.scope {
                Scope::User | Scope::Api => all.of.entry(rule.target.clone()).or_default().push(index),
                Scope::Endpoint => match api_of(&rule.target) {
                    Some(api) => all.of.entry(api.into()).or_default().push(index),
                    None => all.others.push(index),
                },
                _ => all.others.push(index),
            }
            all.rules.push(rule);
        }
        all
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules that apply, and their counters.
    pub fn applying<'a>(&'a self, facts: &Facts<'_>) -> SmallVec<[(&'a Rule, Counter); 2]> {
        let named = [facts.user, facts.api].into_iter().flatten().filter_map(|name| self.of.get(name)).flatten();
        let mut indexes: SmallVec<[usize; 8]> = named.chain(&self.others).copied().collect();
        indexes.sort_unstable();
        indexes.dedup();
        let rules = indexes.into_iter().filter_map(|index| self.rules.get(index));
        rules.filter_map(|rule| Some((rule, rule.counter(facts)?))).collect()
    }
}

/// `name/version` in the name of an endpoint.
fn api_of(endpoint: &str) -> Option<&str> {
    let path = endpoint.split_once('/')?.1;
    let version = path.find('/')? + 1;
    let end = path.get(version..)?.find('/').map_or(path.len(), |length| version + length);
    path.get(..end)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn rules(rules: &[(&str, &str, &str, i32)]) -> Rules {
        let document = |(id, rule_type, target, priority): &(&str, &str, &str, i32)| {
            Arc::new(doc! { "rule_id": *id, "rule_type": *rule_type, "target_identifier": *target, "limit": 5,
            "time_window": "minute", "priority": *priority })
        };
        Rules::of(&rules.iter().map(document).collect::<Vec<_>>())
    }

    fn facts<'a>(user: Option<&'a str>, address: &str) -> Facts<'a> {
        let endpoint = EndpointName { method: "GET", api: "orders/v1", path: "/items/{id}" };
        Facts {
            user,
            api: Some("orders/v1"),
            endpoint: Some(endpoint),
            address: address.parse().unwrap(),
            is_call: true,
        }
    }

    fn ids(rules: &Rules, facts: &Facts<'_>) -> Vec<String> {
        rules.applying(facts).iter().map(|(rule, _)| rule.id.to_string()).collect()
    }

    #[test]
    fn every_rule_that_applies_counts_the_most_important_first() {
        let rules = rules(&[
            ("all", "global", "", 0),
            ("amy", "per_user", "amy", 5),
            ("bob", "per_user", "bob", 9),
            ("orders", "per_api", "orders/v1", 7),
            ("orders-v2", "per_api", "orders/v2", 8),
            ("item", "per_endpoint", "GET /orders/v1/items/{id}", 6),
            ("post", "per_endpoint", "POST /orders/v1/items/{id}", 6),
            ("office", "per_ip", "192.0.2.0/24", 1),
            ("each", "per_user_api", "", 2),
            ("each-other", "per_user_api", "other/v1", 2),
            ("each-item", "per_user_endpoint", "GET /orders/v1/items/{id}", 3),
        ]);
        let amy = ["orders", "item", "amy", "each-item", "each", "office", "all"];
        assert_eq!(ids(&rules, &facts(Some("amy"), "::ffff:192.0.2.7")), amy);
        assert_eq!(ids(&rules, &facts(None, "203.0.113.1")), ["orders", "item", "all"]);
        let nothing = Facts { user: None, api: None, endpoint: None, ..facts(None, "203.0.113.1") };
        assert_eq!(ids(&rules, &nothing), ["all"]);
    }

    #[test]
    fn what_counts_for_each_counts_for_each_alone() {
        let rules = rules(&[("each", "per_user_api", "", 0), ("net", "per_ip", "192.0.2.0/24", 0)]);
        let keys = |user, address| {
            let facts = facts(Some(user), address);
            rules.applying(&facts).into_iter().map(|(_, counter)| counter.key).collect::<Vec<_>>()
        };
        let (amy, bob) = (keys("amy", "192.0.2.1"), keys("bob", "192.0.2.2"));
        assert_eq!(amy, keys("amy", "192.0.2.1"));
        assert!(amy.iter().zip(&bob).all(|(one, other)| one != other), "{amy:?} {bob:?}");
    }

    #[test]
    fn a_rule_that_can_not_be_read_limits_nobody() {
        let odd = [("a", "per_user", "", 0), ("b", "per_ip", "nonsense", 0), ("c", "per_moon", "x", 0)];
        assert!(rules(&odd).is_empty());
        let off = doc! { "rule_id": "a", "rule_type": "global", "limit": 1, "time_window": "day", "enabled": false };
        assert!(Rules::of(&[Arc::new(off)]).is_empty());
    }

    #[test]
    fn the_root_of_an_api_is_named_with_or_without_its_slash() {
        let root = EndpointName { method: "GET", api: "orders/v1", path: "/" };
        assert!(root.is("GET /orders/v1") && root.is("GET /orders/v1/") && !root.is("GET /orders/v1/x"));
        assert_eq!(
            (api_of("GET /orders/v1"), api_of("GET /orders/v1/x/y"), api_of("GET")),
            (Some("orders/v1"), Some("orders/v1"), None)
        );
    }
}
