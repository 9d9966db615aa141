-- {{Customer}} is the company's table in the target. A file 010-raise.postgresql.sql would take this one's place there.
update {{Customer}} set "Credit Limit (LCY)" = "Credit Limit (LCY)" + 10 where "Blocked" = 0;
update {{Customer}} set "Contact" = 'none; unknown' where "Contact" = '';
