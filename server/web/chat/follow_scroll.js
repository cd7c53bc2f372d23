// Scrolling that follows what is written, unless the reader has scrolled up.

const NEAR = 48; // pixels from the end that count as the end

/** Keep `scroller` at its end while `content` grows. `onAway(isAway)` says whether the reader is elsewhere. */
export function followScroll(scroller, content, onAway) {
  let isFollowing = true;
  let lastTop = 0;
  const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight <= NEAR;

  function set(follows) {
    if (follows === isFollowing) return;
    isFollowing = follows;
    onAway(!follows);
  }

  function toEnd() {
    scroller.scrollTop = scroller.scrollHeight;
    lastTop = scroller.scrollTop;
  }

  scroller.addEventListener(
    "scroll",
    () => {
      const isUp = scroller.scrollTop < lastTop - 1;
      lastTop = scroller.scrollTop;
      if (isAtEnd()) set(true);
      else if (isUp) set(false);
    },
    { passive: true },
  );
  const observer = new ResizeObserver(() => isFollowing && toEnd());
  observer.observe(content);
  observer.observe(scroller);
  return {
    /** Go to the end, and follow from there. */
    follow() {
      set(true);
      toEnd();
    },
  };
}
