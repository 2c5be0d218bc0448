//! The policy of a service: all rules that its file uses, compiled with each table.
//!
//! # Theory of operation
//! The control thread compiles the policy once, with the table. A service that uses no rule has no
//! policy, so its requests pay only for one check. Every thread has a copy of its own, so a rule
//! with much data holds it in an `Arc`.
//!
//! The policy is asked at two places. [`ask`] is called when the head of a request was parsed and
//! routed, before the head is written for an instance; its ruling is kept with the request.
//! [`ResponsePolicy::apply`] is called when the head of the final response was written for the
//! client, before it is sent. The policy is not asked about responses that the proxy makes itself,
//! nor about interim responses.

use std::rc::Rc;

use super::body_limit::BodyLimit;
use super::hsts::Hsts;
use super::redirect_to_tls::RedirectToTls;
use super::rule::{Answered, Asked, Memo, Rule, Ruling};
use super::strip_prefix::StripPrefix;
use crate::ipc::{Handling, Route};
use crate::proxy::http::headers::RequestSender;
use crate::proxy::http::http1::{Refusal, RequestHead, ResponseHead};

/// Defines [`Policy`] from a list of rules. The rules are asked in the order of the list.
macro_rules! policy_of {
    ($($name:ident: $rule:ty,)*) => {
        /// The rules of one service. A rule that the service does not use is `None`.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct Policy {
            $($name: Option<$rule>,)*
        }

        impl Policy {
            /// Compiles the rules of a service; `None` if the service uses none.
            pub(crate) fn compile(handling: &Handling, routes: &[Route]) -> Option<Policy> {
                let policy = Policy {
                    $($name: <$rule>::compile(handling, routes),)*
                };
                let is_used = [$(policy.$name.is_some(),)*].contains(&true);
                is_used.then_some(policy)
            }

            fn on_request(&self, asked: &mut Asked<'_, '_>) -> Result<(), Refusal> {
                $(if let Some(rule) = &self.$name {
                    rule.on_request(asked)?;
                })*
                Ok(())
            }

            fn on_response(&self, answered: &mut Answered<'_, '_>) {
                $(if let Some(rule) = &self.$name {
                    rule.on_response(answered);
                })*
            }
        }
    };
}

policy_of! {
    strip_prefix: StripPrefix,
    redirect_to_tls: RedirectToTls,
    body_limit: BodyLimit,
    hsts: Hsts,
}

/// Asks the policy of a service about a request: its head, its sender, and how many bytes of the
/// path its route strips. Returns the ruling, and the part of the policy that concerns the
/// response.
pub(crate) fn ask(
    policy: Rc<Policy>,
    head: &mut RequestHead<'_>,
    sender: RequestSender<'_>,
    strip: usize,
) -> Result<(Ruling, ResponsePolicy), Refusal> {
    let mut asked = Asked::new(head, sender, strip);
    policy.on_request(&mut asked)?;
    let (ruling, memo) = asked.end();
    Ok((ruling, ResponsePolicy { policy, memo }))
}

/// The part of a service's policy that concerns the response to one request.
#[derive(Debug)]
pub(crate) struct ResponsePolicy {
    policy: Rc<Policy>,
    memo: Memo,
}

/// The empty line that ends the head of a response.
const HEAD_END: &[u8] = b"\r\n";

impl ResponsePolicy {
    /// Applies the policy to the head of a response, which stands at the end of `out` as the client
    /// will get it.
    pub(crate) fn apply(&self, head: &ResponseHead<'_>, out: &mut Vec<u8>) {
        debug_assert!(out.ends_with(b"\r\n\r\n"));
        out.truncate(out.len() - HEAD_END.len());
        self.policy.on_response(&mut Answered {
            memo: self.memo,
            head,
            out,
        });
        out.extend_from_slice(HEAD_END);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ipc::{Host, ListenerId};
    use crate::proxy::http::http1::slots;

    fn route(strip: usize) -> Route {
        Route {
            listener: ListenerId(1),
            host: Host::Any,
            path: "/shop".to_owned(),
            strip,
        }
    }

    #[test]
    fn a_service_without_rules_has_no_policy() {
        assert_eq!(Policy::compile(&Handling::default(), &[route(0)]), None);
        assert!(Policy::compile(&Handling::default(), &[route(0), route(5)]).is_some());
        let handling = Handling {
            max_request_body: Some(1),
            ..Handling::default()
        };
        assert!(Policy::compile(&handling, &[]).is_some());
    }

    #[test]
    fn rules_are_asked_together() {
        let handling = Handling {
            max_request_body: Some(1),
            redirect_https: Some(443),
            hsts: Some(Duration::from_secs(60)),
            ..Handling::default()
        };
        let policy = Rc::new(Policy::compile(&handling, &[route(5)]).unwrap());
        for secure in [true, false] {
            let mut slots = slots();
            let head = b"POST /shop/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
            let mut head = RequestHead::parse(head, &mut slots).unwrap().unwrap();
            let sender = RequestSender {
                address: "192.0.2.1",
                secure,
                trusted: false,
                forwarded: false,
            };
            let (ruling, response) = ask(policy.clone(), &mut head, sender, 5).unwrap();
            assert_eq!((head.prefix, head.target), ("/shop", "/x"));
            assert_eq!(ruling.denial.is_some(), !secure);
            assert!(ruling.room.is_exceeded());
            let mut slots = crate::proxy::http::http1::slots();
            let text = b"HTTP/1.1 200 OK\r\n\r\n";
            let head = ResponseHead::parse(text, false, &mut slots)
                .unwrap()
                .unwrap();
            let mut out = text.to_vec();
            response.apply(&head, &mut out);
            let with_tls = "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=60\r\n\r\n";
            let expected = if secure { with_tls.as_bytes() } else { text };
            assert_eq!(out, expected);
        }
    }
}
