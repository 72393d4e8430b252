"""What a call returns: the record, traces, streams, and the measure of an answer's length."""
