//! The socket, with an owner that answers by rote.

use std::os::unix::fs::FileTypeExt as _;
use std::sync::mpsc::channel;

use dataplane::attachment::AttachmentKey;
use serde_json::json;

use super::*;

/// A socket with a server and an owner behind it.
struct Server {
    folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = Socket::bind(&folder.path().join("deep/agent.sock")).expect("bound");
        let (mail, mailbox) = channel();
        std::thread::spawn(move || {
            while let Ok(Mail::Call(call)) = mailbox.recv() {
                answer(call);
            }
        });
        let task = tokio::spawn(socket.serve(mail, Health::new()));
        Self { folder, task }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("deep/agent.sock")
    }

    /// The answers to these lines, sent together on one connection.
    async fn ask(&self, lines: &str) -> Vec<Value> {
        let stream = UnixStream::connect(self.path()).await.expect("connected");
        let (read, mut write) = stream.into_split();
        write.write_all(lines.as_bytes()).await.expect("sent");
        drop(write);
        let mut text = String::new();
        BufReader::new(read)
            .read_to_string(&mut text)
            .await
            .expect("answers");
        let answers = text.lines().map(serde_json::from_str);
        answers.collect::<Result<_, _>>().expect("JSON lines")
    }
}

/// What the owner would say: container `closed` has no pod, and a wait fails.
fn answer(call: Call) {
    match call {
        Call::Attach {
            attachment, reply, ..
        } => drop(reply.send(Ok(attachment.key.container_id != "closed"))),
        Call::Detach { reply, .. } => drop(reply.send(Ok(true))),
        Call::Wait { reply, .. } => drop(reply.send(Err("not yet".into()))),
        Call::Services(reply) => drop(reply.send(Vec::new())),
        Call::Verify(reply) => drop(reply.send(Ok(vec!["add element".into()]))),
        // Whoever asks these is left without an answer.
        Call::Status(_) | Call::Policies(_) | Call::NodePort { .. } | Call::Snapshot { .. } => {}
    }
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

fn attach(container: &str) -> String {
    let mut attachment = json!({
        "netns": "/n", "hostIfname": "trm0", "mac": "0a:58:0a:58:00:02", "ips": ["10.88.0.2"],
        "aFieldOfALaterVersion": {},
    });
    let key = serde_json::to_value(key(container)).expect("JSON");
    let (into, from) = (attachment.as_object_mut(), key.as_object().cloned());
    into.expect("an object").extend(from.expect("an object"));
    json!({"verb": "attach", "attachment": attachment, "timeoutMs": 100}).to_string()
}

#[tokio::test]
async fn the_plugin_is_answered_in_its_protocol_in_order() {
    let server = Server::start().await;
    let detach = json!({"verb": "detach", "attachment": key("a")}).to_string();
    let ready = r#"{"verb": "ready"}"#;
    let lines = [attach("open"), attach("closed"), detach, ready.into()].join("\n") + "\n";
    let answers = server.ask(&lines).await;
    let expected = [
        json!({"ok": true, "programmed": true}),
        json!({"ok": true, "programmed": false}),
        json!({"ok": true}),
        json!({"ok": false, "error": "the first sync is not done"}),
    ];
    assert_eq!(answers, expected);
    server.task.abort();
}

#[tokio::test]
async fn the_command_line_gets_a_result_or_the_reason() {
    let server = Server::start().await;
    let answers = server
        .ask("{\"verb\":\"wait\",\"timeoutMs\":1}\n{\"verb\":\"services\"}\n{\"verb\":\"verify\"}\n{\"verb\":\"status\"}\n")
        .await;
    let expected = [
        json!({"error": "not yet"}),
        json!({"result": []}),
        json!({"result": ["add element"]}),
        json!({"error": "the agent is ending"}),
    ];
    assert_eq!(answers, expected);
    server.task.abort();
}

#[tokio::test]
async fn nonsense_is_answered_and_the_connection_goes_on() {
    let server = Server::start().await;
    let lines = format!("{{\n\n{{\"verb\":\"fly\"}}\n[]\n{}\n", attach("open"));
    let answers = server.ask(&lines).await;
    assert_eq!(answers.len(), 5, "{answers:?}");
    for (answer, part) in answers
        .iter()
        .zip(["no JSON", "no JSON", "fly", "unknown request"])
    {
        assert_eq!(answer["ok"], false);
        assert!(
            answer["error"]
                .as_str()
                .is_some_and(|error| error.contains(part)),
            "{answer}"
        );
    }
    assert_eq!(answers[4]["ok"], true);
    server.task.abort();
}

#[tokio::test]
async fn the_socket_is_for_root_and_replaces_a_dead_one_only() {
    let server = Server::start().await;
    let metadata = std::fs::metadata(server.path()).expect("there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let Err(error) = Socket::bind(&server.path()) else {
        panic!("another agent has it");
    };
    assert!(
        error.to_string().contains("another agent is running"),
        "{error}"
    );

    server.task.abort();
    let path = server.path();
    assert!(server.task.await.expect_err("ended above").is_cancelled());
    assert!(path.exists(), "it says that an agent is to come");
    assert!(Socket::bind(&path).is_ok());
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_named() {
    let Err(error) = Socket::bind(Path::new("/proc/nowhere/agent.sock")) else {
        panic!("no folder can be made there");
    };
    assert!(
        error.to_string().contains("/proc/nowhere/agent.sock"),
        "{error}"
    );
}

#[tokio::test]
async fn who_asks_an_owner_that_has_ended_is_told() {
    let (mail, mailbox) = channel();
    drop(mailbox);
    let answer = respond(attach("a").as_bytes(), &mail, &Health::new()).await;
    assert_eq!(answer["error"], "the agent is ending");
}
