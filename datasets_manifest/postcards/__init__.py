"""The generated data set: rendered postcards in three styles. Imports errors only."""
