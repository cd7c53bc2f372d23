"""StoryBook: the stories of the requests that run, and of the last ones that have ended."""

from collections import OrderedDict

from typing_extensions import override

from caravan.scheduler.messages import StepOutput
from caravan.server.engine.listener import EngineListener
from caravan.server.observe.request_story import RequestStory

MAX_STORIES = 1000  # running ones come on top
MAX_CHOICES = 10_000  # of all stories: one may have thousands


class StoryBook(EngineListener):
    """Finds the story of an answer by its id, and hands on what the engine says of its choices."""

    def __init__(self, max_stories: int = MAX_STORIES, max_choices: int = MAX_CHOICES) -> None:
        self._max_stories = max_stories
        self._max_choices = max_choices
        self._num_choices = 0  # of the stories that are kept
        self._stories: OrderedDict[str, RequestStory] = OrderedDict()  # by answer id, the latest last
        self._by_request: dict[tuple[str, str], RequestStory] = {}  # the latest of each key and id of an exchange
        self._running: dict[int, RequestStory] = {}  # by the engine's number of a choice, until its reader is done

    def begin(self, story: RequestStory) -> None:
        """Add a story whose choices are queued; the oldest ended ones go if there are too many."""
        self._num_choices += story.num_choices
        self._stories[story.answer_id] = story
        self._by_request[story.key_name, story.request_id] = story
        while len(self._stories) > self._max_stories or self._num_choices > self._max_choices:
            oldest = next((kept for kept in self._stories.values() if kept.is_finished), None)
            if oldest is None:
                return
            del self._stories[oldest.answer_id]
            self._num_choices -= oldest.num_choices
            if self._by_request.get(place := (oldest.key_name, oldest.request_id)) is oldest:
                del self._by_request[place]

    def queue(self, story: RequestStory, engine_number: int, num_before: int) -> None:
        """Tell a story that its next choice was given to the engine."""
        story.queue(engine_number, num_before)
        self._running[engine_number] = story

    @override
    def on_step(self, output: StepOutput) -> None:
        """Tell the stories of a step."""
        for event in output.events:
            if (story := self._running.get(event.request_id)) is not None:
                story.take_event(event, output.stats.step_seconds)
        ended = sum(one.finish_reason is not None for one in output.outputs)
        batch_size = output.stats.num_running + ended  # those that have ended run no more
        for one in output.outputs:
            if (story := self._running.get(one.request_id)) is not None:
                story.take_output(one, batch_size)

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """Tell the stories that run that their engine was replaced: all of them are in its queue again."""
        for story in {id(story): story for story in self._running.values() if not story.is_finished}.values():
            story.replay(down_seconds)

    def drop(self, engine_number: int, reason: str = "abort", num_tokens: int | None = None) -> None:
        """Tell a story how a choice ended for its reader, and with how many tokens; only the first call counts."""
        story = self._running.pop(engine_number, None)
        if story is not None:
            story.end(engine_number, reason, num_tokens)

    def find(self, name: str, key_name: str) -> RequestStory | None:
        """Return the story of an answer, by its id or that of its exchange, to the key that asked for it only."""
        story = self._stories.get(name) or self._by_request.get((key_name, name))
        return story if story is not None and story.key_name == key_name else None
