"""The stages of dvc.yaml, each a short process of its own: `python -m stages.train --help`."""

from pipeline.claims import end_with_parent
from pipeline.startup import draw_bars_rarely_in_logs, spare_collections, tell_mistakes_in_a_line

spare_collections()
draw_bars_rarely_in_logs()
tell_mistakes_in_a_line()
end_with_parent()
