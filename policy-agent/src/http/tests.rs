use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::router;
use crate::health::Health;

async fn get(server: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server)
        .await
        .expect("connected");
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn each_path_says_what_it_is_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(async move { axum::serve(listener, router(Health::new())).await });
    for (path, status, part) in [
        ("/healthz", "200", "\"lastUpdated\":"),
        ("/livez", "200", "\"currentTime\":"),
        ("/readyz", "503", "the first sync is not done"),
        ("/metrics", "200", "application/openmetrics-text"),
        ("/metrics", "200", "trammel_sync_duration_seconds"),
        ("/proxyMode", "200", "nftables"),
        ("/", "404", ""),
    ] {
        let answer = get(address, path).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(status), "{path}: {first}");
        assert!(answer.contains(part), "{path}: {answer}");
    }
    server.abort();
}
