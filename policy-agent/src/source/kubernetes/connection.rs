//! The way to the API server.
//!
//! A server that has died without a word, or a load balancer that has forgotten a connection,
//! leaves a watch silent: nothing is sent that could fail, and this node would go on by the
//! policies of before until the watch's time is over, five minutes later. So the kernel asks the
//! other side of a silent connection whether it is still there.
//!
//! What the server cannot answer now is told at once, and the watch tries again after its own
//! pauses. The client that kube makes of a configuration repeats such requests by itself, for
//! minutes with growing pauses, and says nothing meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{InClusterError, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

use super::token::TokenFile;

/// The other side of a connection on which nothing comes is asked this often...
const PROBE: Duration = Duration::from_secs(10);
/// ...and after so long without a word from its kernel the connection is over
/// (`TCP_USER_TIMEOUT`, tcp(7)).
const LOST: Duration = Duration::from_secs(30);
/// A server that is there and says nothing for so long has forgotten the request. It ends
/// watches itself before that.
const SILENCE: Duration = Duration::from_secs(300);
/// The longest time to stay away that a server is obeyed in (`Retry-After`): API servers ask for
/// a second or a few.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to reach the API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// The current context of that kubeconfig file.
    Kubeconfig(PathBuf),
    /// The service account of the pod that this runs in.
    InCluster,
}

/// Why there is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be read or understood.
    #[error("cannot use kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// The kubeconfig wants a proxy.
    #[error(
        "kubeconfig {}: proxy-url is {url:?}, but the agent connects to API servers directly: \
         leave it out, with a server that this node reaches",
        path.display()
    )]
    Proxy {
        /// The file.
        path: PathBuf,
        /// The value.
        url: String,
    },
    /// Not in a pod, or without a service account.
    #[error(
        "no in-cluster configuration: give --kubeconfig, or run in a pod with a service account"
    )]
    InCluster(#[source] Box<InClusterError>),
    /// There is no token where the configuration says.
    #[error("cannot use the token in {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration makes no client (certificates, authentication).
    #[error("cannot set up the API client")]
    Client(#[source] Box<kube::Error>),
}

/// A client for the API server.
///
/// # Errors
/// Where the configuration is missing or wrong; the server is not contacted.
pub async fn client(access: &Access) -> Result<Client, ClientError> {
    let config = match access {
        Access::Kubeconfig(path) => kubeconfig(path).await?,
        Access::InCluster => Config::incluster().map_err(|e| ClientError::InCluster(e.into()))?,
    };
    connect(config)
}

async fn kubeconfig(path: &Path) -> Result<Config, ClientError> {
    let explain = |source: KubeconfigError| ClientError::Kubeconfig {
        path: path.to_owned(),
        source: source.into(),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(explain)?;
    let named = proxy_of(&kubeconfig);
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .map_err(explain)?;
    match named {
        Some(url) => Err(ClientError::Proxy {
            path: path.to_owned(),
            url,
        }),
        // `HTTPS_PROXY` is for what nodes fetch from outside of the cluster.
        None => Ok(config),
    }
}

/// The proxy of the current context's cluster.
fn proxy_of(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|context| context.name == *current)?;
    let cluster = &context.context.as_ref()?.cluster;
    let mut clusters = kubeconfig.clusters.iter();
    let cluster = clusters.find(|named| named.name == *cluster)?;
    let url = cluster.cluster.as_ref()?.proxy_url.clone()?;
    (!url.is_empty()).then_some(url)
}

/// The client of a configuration, without a proxy.
///
/// # Errors
/// See [`ClientError`].
pub(super) fn connect(mut config: Config) -> Result<Client, ClientError> {
    // It goes before a token in the configuration itself, as in client-go.
    let token = match config.auth_info.token_file.take().map(PathBuf::from) {
        Some(path) => {
            config.auth_info.token = None;
            let token = TokenFile::open(&path);
            Some(token.map_err(|source| ClientError::Token { path, source })?)
        }
        None => None,
    };
    let client = build(&config, token);
    client.map_err(|error| ClientError::Client(error.into()))
}

fn build(config: &Config, token: Option<TokenFile>) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_tcp_user_timeout(Some(LOST));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(Some(SILENCE));
    // Counted from the request on, not from the end of the last answer.
    connector.set_reset_reader_on_write(true);
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let token = token.map(Arc::new);
    let authorize = move |mut request: Request<Body>| {
        if let Some(token) = &token {
            let headers = request.headers_mut();
            headers.insert(header::AUTHORIZATION, token.header());
        }
        request
    };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_request(authorize)
        .map_err(BoxError::from)
        .service(http.and_then(obey));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Holds an answer back for as long as the server wants to be left alone.
async fn obey<B>(answer: Response<B>) -> Result<Response<B>, legacy::Error> {
    if let Some(pause) = asked_pause(answer.status(), answer.headers()) {
        tokio::time::sleep(pause).await;
    }
    Ok(answer)
}

/// How long the server asks to stay away, with a limit.
fn asked_pause(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let is_overload = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    if !is_overload.contains(&status) {
        return None;
    }
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let asked = Duration::from_secs(seconds.trim().parse().ok()?);
    Some(asked.min(PATIENCE))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks_within_reason() {
        let second = Duration::from_secs(1);
        for (status, header, pause) in [
            (429, Some("1"), Some(second)),
            (503, Some(" 2 "), Some(2 * second)),
            (503, Some("86400"), Some(PATIENCE)),
            (429, None, None),
            (429, Some("Fri, 31 Dec 1999 23:59:59 GMT"), None),
            (429, Some("-1"), None),
            (500, Some("1"), None),
            (200, Some("1"), None),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let headers = header.map(|text| (header::RETRY_AFTER, HeaderValue::from_static(text)));
            let headers: HeaderMap = headers.into_iter().collect();
            assert_eq!(asked_pause(status, &headers), pause, "{status} {headers:?}");
        }
    }

    /// A token as `kubectl create token` writes it, beside one that it goes before.
    #[tokio::test]
    async fn requests_have_the_token_of_the_file() {
        let seen = |headers: HeaderMap| async move {
            let value = headers.get(header::AUTHORIZATION);
            value.map_or_else(String::new, |value| format!("{value:?}"))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server =
            tokio::spawn(
                async move { axum::serve(listener, axum::Router::new().fallback(seen)).await },
            );
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        let text = format!(
            "current-context: here
contexts: [{{name: here, context: {{cluster: near, user: me}}}}]
users: [{{name: me, user: {{token: old, tokenFile: token}}}}]
clusters: [{{name: near, cluster: {{server: 'http://{address}'}}}}]
"
        );
        std::fs::write(&path, text).expect("written");
        let access = Access::Kubeconfig(path);
        let error = client(&access).await.err().expect("there is no token");
        assert!(error.to_string().contains("token"), "{error}");
        std::fs::write(folder.path().join("token"), "new\n").expect("written");
        let client = client(&access).await.expect("a client");
        let request = Request::get("/").body(Vec::new()).expect("a request");
        let answer = client.request_text(request).await.expect("an answer");
        assert_eq!(answer, "\"Bearer new\"");
        server.abort();
    }

    #[tokio::test]
    async fn a_proxy_in_the_kubeconfig_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        let access = Access::Kubeconfig(path.clone());
        for (proxy, is_refused) in [("", false), ("proxy-url: 'http://192.0.2.9:3128'", true)] {
            let text = format!(
                "current-context: here
contexts: [{{name: here, context: {{cluster: near, user: me}}}}]
users: [{{name: me, user: {{}}}}]
clusters:
  - {{name: far, cluster: {{server: 'http://192.0.2.1', proxy-url: 'http://192.0.2.8'}}}}
  - name: near
    cluster:
      server: 'http://192.0.2.2'
      {proxy}
"
            );
            std::fs::write(&path, text).expect("written");
            match client(&access).await {
                Ok(_) => assert!(!is_refused, "{proxy}"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(
                        is_refused && said.contains("http://192.0.2.9:3128"),
                        "{said}"
                    );
                }
            }
        }
    }
}
