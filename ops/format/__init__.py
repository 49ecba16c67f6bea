"""Files' formats: the arithmetic that is deployed, and the linears that run it and say how they are stored."""
