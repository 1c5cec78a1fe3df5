use std::os::unix::net::UnixListener;

use super::*;

/// What `verify` makes of an agent that answers so, and what the agent was asked.
fn verify_with(answer: &'static str) -> (anyhow::Result<ExitCode>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let client = Client {
        socket: folder.path().join("agent.sock"),
        output: Output::Json,
    };
    let listener = UnixListener::bind(&client.socket).expect("bound");
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("asked");
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        reader.read_line(&mut line).expect("a line");
        stream.write_all(answer.as_bytes()).expect("answered");
        line
    });
    let result = verify(&client);
    (result, agent.join().expect("no panic"))
}

#[test]
fn verify_says_by_its_status_whether_something_differs() {
    let (same, asked) = verify_with("{\"result\": []}\n");
    assert_eq!(asked, "{\"verb\":\"verify\"}\n");
    assert_eq!(
        format!("{:?}", same.ok()),
        format!("{:?}", Some(ExitCode::SUCCESS))
    );
    let (differs, _) = verify_with("{\"result\": [\"add element\"]}\n");
    assert_eq!(
        format!("{:?}", differs.ok()),
        format!("{:?}", Some(ExitCode::FAILURE))
    );
}

#[test]
fn the_reason_of_the_agent_is_the_error() {
    let (result, _) = verify_with("{\"error\": \"the tables cannot be read\"}\n");
    assert_eq!(
        result.expect_err("an error").to_string(),
        "the tables cannot be read"
    );
    for answer in ["", "nonsense\n", "{\"result\": 7}\n"] {
        assert!(verify_with(answer).0.is_err(), "{answer:?}");
    }
}

#[test]
fn an_agent_that_is_away_is_named_by_its_socket() {
    let client = Client {
        socket: "/nonexistent/agent.sock".into(),
        output: Output::Text,
    };
    for result in [
        wait(&client, Duration::from_secs(1)),
        status(&client),
        services(&client),
        policies(&client),
        verify(&client),
    ] {
        let error = result.expect_err("nobody answers").to_string();
        assert!(error.contains("/nonexistent/agent.sock"), "{error}");
    }
}
