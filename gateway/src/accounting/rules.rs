//! Rules on rates: who may send how much in which time, set for all of the gateway (reference: platform API 15).
//!
//! In: stored rules. Out: for what is known of a request, the counters of the rules that apply to it, the most important
//! rule first. What always holds: a request is measured by every rule that applies, one that is refused only by those on
//! addresses; how many rules there are for other users and APIs doesn't matter to it. `burst_allowance` lets nothing more
//! through.

use std::{collections::HashMap, fmt, sync::Arc};

use doorman_crds::path::PathTemplate;
use mongodb::bson::Document;
use smallvec::SmallVec;

use super::{Admission, Facts};
use crate::{
    client,
    store::{
        Counter, Family, Span, braced,
        rules::{Rule, RuleType, Target},
    },
};

/// An endpoint, as rules name it: `GET /orders/v1/items/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointName<'a> {
    /// The method of the endpoint.
    pub method: &'a str,
    /// `name/version` of its API.
    pub api: &'a str,
    /// The path below that which clients call.
    pub path: &'a PathTemplate,
}

impl fmt::Display for EndpointName<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, api, path } = self;
        write!(out, "{method} {api}{path}")
    }
}

/// A name that colons may follow. Its own can't be taken for those, so no two rules or users share a counter.
fn part(name: &str) -> String {
    name.replace('%', "%25").replace(':', "%3A")
}

/// The counter of a rule that measures this request; `None`: the rule doesn't apply.
fn counter(rule: &Rule, facts: &Facts<'_>) -> Option<Counter> {
    let is_about = match &rule.target {
        Target::Any => true,
        Target::User(name) => facts.user == Some(name),
        Target::Api { name, version } => facts
            .api
            .and_then(|api| api.split_once('/'))
            .is_some_and(|(own, of_own)| own == name && version.as_ref().is_none_or(|version| of_own == version)),
        Target::Endpoint { method, name, version, path } => facts.endpoint.is_some_and(|own| {
            method.as_ref().is_none_or(|method| own.method == method.as_str())
                && own.api.split_once('/') == Some((name, version))
                && own.path == path
        }),
        Target::Network(network) => network.contains(&facts.address.to_canonical()),
    };
    let whose = match rule.rule_type {
        _ if !is_about => return None,
        // Who is not let in uses up what addresses may send, and nothing that is there for others too.
        rule_type if facts.admission == Admission::Refused && rule_type != RuleType::PerIp => return None,
        RuleType::Global => String::new(),
        RuleType::PerUser => format!(":{}", part(facts.user?)),
        RuleType::PerApi => format!(":{}", facts.api?),
        RuleType::PerEndpoint => format!(":{}", facts.endpoint?),
        RuleType::PerIp => format!(":{}", client::counted(facts.address)),
        RuleType::PerUserApi => format!(":{}:{}", part(facts.user?), facts.api?),
        RuleType::PerUserEndpoint => format!(":{}:{}", part(facts.user?), facts.endpoint?),
    };
    // A rule that gets another window or is about something else counts anew.
    let window = rule.window.length();
    let key = Family::Window.named(braced(&format!("rule:{}:{}{whose}", part(&rule.id), window.as_secs())));
    let counter = Counter::of_requests(key, Span::Sliding(window), rule.limit);
    Some(Counter { is_of_address: rule.rule_type == RuleType::PerIp, ..counter })
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
        let read = |document: &Arc<Document>| {
            let rule = Rule::from_document(document);
            if rule.is_none() {
                let id = document.get_str("rule_id").unwrap_or_default();
                tracing::warn!(rule = id, "a rate limit rule can't be read and has no effect");
            }
            rule.filter(|rule| rule.is_enabled)
        };
        let mut rules: Vec<Rule> = documents.iter().filter_map(read).collect();
        rules.sort_by(|one, other| other.priority.cmp(&one.priority).then_with(|| one.id.cmp(&other.id)));
        let mut all = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            match &rule.target {
                Target::User(name) => all.of.entry(name.as_str().into()).or_default().push(index),
                Target::Api { name, version: Some(version) } | Target::Endpoint { name, version, .. } => {
                    all.of.entry(format!("{name}/{version}").into()).or_default().push(index);
                }
                Target::Any | Target::Network(_) | Target::Api { version: None, .. } => all.others.push(index),
            }
        }
        Self { rules, ..all }
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
        rules.filter_map(|rule| Some((rule, counter(rule, facts)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use mongodb::bson::{Bson, doc};

    use super::*;

    fn rules(rules: &[(&str, &str, &str, i32)]) -> Rules {
        let document = |(id, rule_type, target, priority): &(&str, &str, &str, i32)| {
            let target = if target.is_empty() { Bson::Null } else { (*target).into() };
            Arc::new(doc! { "rule_id": *id, "rule_type": *rule_type, "target_identifier": target, "limit": 5,
            "time_window": "minute", "priority": *priority })
        };
        Rules::of(&rules.iter().map(document).collect::<Vec<_>>())
    }

    fn facts<'a>(user: Option<&'a str>, address: &str) -> Facts<'a> {
        static PATH: LazyLock<PathTemplate> = LazyLock::new(|| PathTemplate::parse("/items/{id}").unwrap());
        let endpoint = EndpointName { method: "GET", api: "orders/v1", path: &PATH };
        Facts {
            user,
            api: Some("orders/v1"),
            endpoint: Some(endpoint),
            address: address.parse().unwrap(),
            admission: Admission::User,
        }
    }

    fn ids(rules: &Rules, facts: &Facts<'_>) -> Vec<String> {
        rules.applying(facts).iter().map(|(rule, _)| rule.id.clone()).collect()
    }

    #[test]
    fn every_rule_that_applies_counts_the_most_important_first() {
        let rules = rules(&[
            ("all", "global", "", 0),
            ("amy", "per_user", "amy", 5),
            ("bob", "per_user", "bob", 9),
            ("orders", "per_api", "orders/v1", 7),
            ("orders-v2", "per_api", "orders/v2", 8),
            ("any-version", "per_api", "orders", 4),
            ("stock", "per_api", "stock", 4),
            ("any-method", "per_endpoint", "/api/rest/orders/v1/items/{id}", 3),
            ("item", "per_endpoint", "GET /orders/v1/items/{id}", 6),
            ("post", "per_endpoint", "POST /orders/v1/items/{id}", 6),
            ("office", "per_ip", "192.0.2.0/24", 1),
            ("each", "per_user_api", "", 2),
            ("each-other", "per_user_api", "other/v1", 2),
            ("each-item", "per_user_endpoint", "GET /orders/v1/items/{id}", 3),
        ]);
        let amy = ["orders", "item", "amy", "any-version", "any-method", "each-item", "each", "office", "all"];
        assert_eq!(ids(&rules, &facts(Some("amy"), "::ffff:192.0.2.7")), amy);
        assert_eq!(ids(&rules, &facts(None, "203.0.113.1")), ["orders", "item", "any-version", "any-method", "all"]);
        let refused = Facts { admission: Admission::Refused, ..facts(Some("amy"), "192.0.2.7") };
        assert_eq!(ids(&rules, &refused), ["office"]);
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
    fn an_ipv6_network_counts_as_one_and_no_two_names_share_a_counter() {
        let key = |id: &str, rule_type: &str, user: &str, address: &str| {
            let rules = rules(&[(id, rule_type, if rule_type == "per_ip" { "::/0" } else { "" }, 0)]);
            rules.applying(&facts(Some(user), address)).into_iter().map(|(_, counter)| counter.key).collect::<Vec<_>>()
        };
        let of_address = |address| key("net", "per_ip", "amy", address);
        assert_eq!(of_address("2001:db8::1"), of_address("2001:db8::ffff:1:2"));
        assert_ne!(of_address("2001:db8::1"), of_address("2001:db8:0:1::1"));
        let of_user = |id, user| key(id, "per_user_api", user, "192.0.2.1");
        assert_ne!(of_user("each", "a:b"), of_user("each:a", "b"));
        assert_ne!(of_user("each", "a:b"), of_user("each", "a%3Ab"));
    }

    #[test]
    fn a_rule_that_can_not_be_read_limits_nobody() {
        let odd = [("a", "per_user", "", 0), ("b", "per_ip", "nonsense", 0), ("c", "per_moon", "x", 0)];
        assert!(rules(&odd).is_empty());
        let off = doc! { "rule_id": "a", "rule_type": "global", "limit": 1, "time_window": "day", "enabled": false };
        assert!(Rules::of(&[Arc::new(off)]).is_empty());
    }
}
