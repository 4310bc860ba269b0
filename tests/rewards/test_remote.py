"""The HTTP reward against a real server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from problems import problem, sample

from areal_mega.config.options import HttpOptions, RewardOptions
from areal_mega.rewards import VerifierError, judge
from areal_mega.rewards.remote import http_scores


@pytest.fixture
def server():
    """A reward server: the score is the response's length; what it should do instead stands in ``plan``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append(body)
            status, answer = 200, {"score": len(body["response"]) / 10, "parts": {"style": 0.5}}
            if self.server.plan:
                step = self.server.plan.pop(0)
                if step == "hang":
                    self.server.released.wait(60)
                    return
                status, answer = step
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.plan, server.released = [], [], threading.Event()
    server.options = HttpOptions(url=f"http://127.0.0.1:{server.server_port}/score", timeout=60.0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_servers_score_is_the_reward(server):
    samples = [sample("aaaaa", "7", "8", task="story", level=3), sample("aa")]
    judge(samples, RewardOptions(name="http", http=server.options))
    assert [s.reward for s in samples] == [0.5, 0.2]
    assert samples[0].reward_parts == {"answer": 0.5, "failed": 0, "http": 0.5, "style": 0.5}
    [asked] = [body for body in server.seen if body["response"] == "aaaaa"]
    assert asked == {
        "prompt": "?", "messages": [], "response": "aaaaa", "answers": ["7", "8"], "task": "story",
        "metadata": {"level": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    "trouble", [(500, {}), (429, {}), (200, b"not JSON"), (200, {"points": 1}), (200, {"score": "x"})]
)
def test_trouble_that_passes_is_tried_again(server, trouble):
    server.plan += [trouble, trouble]
    [score] = http_scores([("aaaa", problem("7"))], server.options)
    assert score.value == 0.4 and not score.failed and len(server.seen) == 3


def test_a_refusal_is_not_tried_again(server):
    server.plan += [(400, {"error": "too long"})]
    [score] = http_scores([("aaaa", problem("7"))], server.options)
    assert score.failed and "HTTP 400" in score.note and len(server.seen) == 1


def test_a_server_that_hangs_costs_its_time_limit(server):
    server.plan += ["hang"]
    server.options.timeout, server.options.attempts = 0.5, 1
    [score] = http_scores([("aaaa", problem("7"))], server.options)
    assert score.failed and score.note == "no answer within 0.5 seconds"


def test_a_server_that_is_not_there_stops_the_run(server):
    options = HttpOptions(url="http://127.0.0.1:9/", attempts=1)
    with pytest.raises(VerifierError, match="none of 2 answers could be judged by reward.name=http"):
        judge([sample("a"), sample("b")], RewardOptions(name="http", http=options))
