--
-- PostgreSQL database dump
--


-- Dumped from database version 18.6
-- Dumped by pg_dump version 18.6

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: deliveries; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.deliveries (
    event bigint NOT NULL,
    sink integer NOT NULL,
    state smallint NOT NULL,
    due double precision,
    holder character varying(32),
    attempts integer NOT NULL,
    failures integer NOT NULL,
    first_attempt_at double precision,
    settled_at double precision,
    why text
);


--
-- Name: dispatchers; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dispatchers (
    holder character varying(32) NOT NULL,
    beat_at double precision NOT NULL,
    clock double precision NOT NULL
);


--
-- Name: events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.events (
    key bigint NOT NULL,
    id character varying(64) NOT NULL,
    received_at double precision NOT NULL,
    matched boolean NOT NULL,
    body bytea NOT NULL
);


--
-- Name: events_key_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.events_key_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: events_key_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.events_key_seq OWNED BY public.events.key;


--
-- Name: quarantine; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.quarantine (
    id character varying(64) NOT NULL,
    received_at double precision NOT NULL,
    why text NOT NULL,
    body bytea NOT NULL
);


--
-- Name: receiver_schema; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.receiver_schema (
    version integer NOT NULL
);


--
-- Name: receiver_schema_version_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.receiver_schema_version_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: receiver_schema_version_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.receiver_schema_version_seq OWNED BY public.receiver_schema.version;


--
-- Name: secrets; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.secrets (
    name text NOT NULL,
    last_at double precision NOT NULL
);


--
-- Name: sinks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sinks (
    key integer NOT NULL,
    name character varying(64) NOT NULL,
    delivered bigint NOT NULL,
    attempts bigint NOT NULL,
    failures bigint NOT NULL,
    last_success_at double precision,
    last_failure_at double precision,
    last_failure text,
    pauses integer NOT NULL,
    paused_until double precision NOT NULL,
    paused_since double precision,
    paused_seconds double precision NOT NULL,
    pause_reason text NOT NULL,
    on_trial character varying(32),
    enabled boolean DEFAULT false NOT NULL
);


--
-- Name: sinks_key_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.sinks_key_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: sinks_key_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.sinks_key_seq OWNED BY public.sinks.key;


--
-- Name: events key; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events ALTER COLUMN key SET DEFAULT nextval('public.events_key_seq'::regclass);


--
-- Name: receiver_schema version; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.receiver_schema ALTER COLUMN version SET DEFAULT nextval('public.receiver_schema_version_seq'::regclass);


--
-- Name: sinks key; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sinks ALTER COLUMN key SET DEFAULT nextval('public.sinks_key_seq'::regclass);


--
-- Data for Name: deliveries; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.deliveries VALUES (1, 1, 0, 1795887029.6918824, NULL, 0, 0, NULL, NULL, NULL);
INSERT INTO public.deliveries VALUES (2, 1, 0, 1795887029.6918824, NULL, 0, 0, NULL, NULL, NULL);
INSERT INTO public.deliveries VALUES (3, 1, 0, 1795887029.6918824, NULL, 0, 0, NULL, NULL, NULL);
INSERT INTO public.deliveries VALUES (4, 1, 0, 1795887029.6918824, NULL, 0, 0, NULL, NULL, NULL);
INSERT INTO public.deliveries VALUES (5, 1, 0, 1795887029.6918824, NULL, 0, 0, NULL, NULL, NULL);
INSERT INTO public.deliveries VALUES (5, 2, 0, 1795887089.7087142, 'oldholder', 1, 0, 1795887029.7087142, NULL, NULL);
INSERT INTO public.deliveries VALUES (1, 2, 1, NULL, NULL, 1, 0, 1795887029.7087142, 1795887029.7253957, '');
INSERT INTO public.deliveries VALUES (3, 2, 2, NULL, NULL, 1, 1, 1795887029.7087142, 1795887029.7356431, 'HTTP 404: it refuses this event');
INSERT INTO public.deliveries VALUES (4, 2, 0, 1795887030.722009, NULL, 1, 1, 1795887029.7087142, 1795887029.7445807, 'HTTP 500');
INSERT INTO public.deliveries VALUES (2, 2, 0, 1795887029.7528763, NULL, 0, 0, NULL, NULL, NULL);


--
-- Data for Name: dispatchers; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dispatchers VALUES ('oldholder', 1795887029.6737068, 1795887029.6757271);


--
-- Data for Name: events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.events VALUES (1, 'delivered', 1795514400, true, '\x7b226576656e74223a207b226576656e744964223a202264656c697665726564222c20226576656e7454797065223a2022746f756368222c20227461726765744e616d65223a202270726f6a656374732f70312f646576696365732f656d753030303030303030303030303030303030303031222c202264617461223a207b22746f756368223a207b2275706461746554696d65223a2022323032362d31312d32345431303a30303a30305a227d7d2c202274696d657374616d70223a2022323032362d31312d32345431303a30303a30305a227d2c20226c6162656c73223a207b226e616d65223a20226f6c64227d7d');
INSERT INTO public.events VALUES (2, 'pending', 1795514400, true, '\x7b226576656e74223a207b226576656e744964223a202270656e64696e67222c20226576656e7454797065223a2022746f756368222c20227461726765744e616d65223a202270726f6a656374732f70312f646576696365732f656d753030303030303030303030303030303030303031222c202264617461223a207b22746f756368223a207b2275706461746554696d65223a2022323032362d31312d32345431303a30303a30305a227d7d2c202274696d657374616d70223a2022323032362d31312d32345431303a30303a30305a227d2c20226c6162656c73223a207b226e616d65223a20226f6c64227d7d');
INSERT INTO public.events VALUES (3, 'dead', 1795514400, true, '\x7b226576656e74223a207b226576656e744964223a202264656164222c20226576656e7454797065223a2022746f756368222c20227461726765744e616d65223a202270726f6a656374732f70312f646576696365732f656d753030303030303030303030303030303030303031222c202264617461223a207b22746f756368223a207b2275706461746554696d65223a2022323032362d31312d32345431303a30303a30305a227d7d2c202274696d657374616d70223a2022323032362d31312d32345431303a30303a30305a227d2c20226c6162656c73223a207b226e616d65223a20226f6c64227d7d');
INSERT INTO public.events VALUES (4, 'failed', 1795514400, true, '\x7b226576656e74223a207b226576656e744964223a20226661696c6564222c20226576656e7454797065223a2022746f756368222c20227461726765744e616d65223a202270726f6a656374732f70312f646576696365732f656d753030303030303030303030303030303030303031222c202264617461223a207b22746f756368223a207b2275706461746554696d65223a2022323032362d31312d32345431303a30303a30305a227d7d2c202274696d657374616d70223a2022323032362d31312d32345431303a30303a30305a227d2c20226c6162656c73223a207b226e616d65223a20226f6c64227d7d');
INSERT INTO public.events VALUES (5, 'claimed', 1795514400, true, '\x7b226576656e74223a207b226576656e744964223a2022636c61696d6564222c20226576656e7454797065223a2022746f756368222c20227461726765744e616d65223a202270726f6a656374732f70312f646576696365732f656d753030303030303030303030303030303030303031222c202264617461223a207b22746f756368223a207b2275706461746554696d65223a2022323032362d31312d32345431303a30303a30305a227d7d2c202274696d657374616d70223a2022323032362d31312d32345431303a30303a30305a227d2c20226c6162656c73223a207b226e616d65223a20226f6c64227d7d');
INSERT INTO public.events VALUES (6, 'unmatched', 1795514401, false, '\x7b226576656e74223a207b226576656e744964223a2022756e6d617463686564222c20226576656e7454797065223a2022746f756368222c20227461726765744e616d65223a202270726f6a656374732f70312f646576696365732f656d753030303030303030303030303030303030303031222c202264617461223a207b22746f756368223a207b2275706461746554696d65223a2022323032362d31312d32345431303a30303a30305a227d7d2c202274696d657374616d70223a2022323032362d31312d32345431303a30303a30305a227d2c20226c6162656c73223a207b226e616d65223a20226f6c64227d7d');


--
-- Data for Name: quarantine; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.quarantine VALUES ('9f0ff7f062a64c672c7f1f7cf231757e9e873315613663f32f4a877fbeeea384', 1795514400, 'the body has no object ''event''', '\x7b226e6f74223a2022616e206576656e74227d');


--
-- Data for Name: receiver_schema; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.receiver_schema VALUES (2);


--
-- Data for Name: secrets; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.secrets VALUES ('DT_SIGNATURE_SECRET', 1795887029.6481972);


--
-- Data for Name: sinks; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.sinks VALUES (1, 'archive', 0, 0, 0, NULL, NULL, NULL, 0, 0, NULL, 0, '', NULL, true);
INSERT INTO public.sinks VALUES (2, 'erp', 1, 3, 2, 1795887029.7296474, 1795887029.748177, 'HTTP 500', 2, 1795890629.722009, 1795887029.7580638, 0, 'HTTP 401: it refuses our credentials', NULL, true);


--
-- Name: events_key_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.events_key_seq', 6, true);


--
-- Name: receiver_schema_version_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.receiver_schema_version_seq', 1, false);


--
-- Name: sinks_key_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.sinks_key_seq', 2, true);


--
-- Name: deliveries deliveries_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (event, sink);


--
-- Name: dispatchers dispatchers_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dispatchers
    ADD CONSTRAINT dispatchers_pkey PRIMARY KEY (holder);


--
-- Name: events events_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_id_key UNIQUE (id);


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (key);


--
-- Name: quarantine quarantine_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.quarantine
    ADD CONSTRAINT quarantine_pkey PRIMARY KEY (id);


--
-- Name: receiver_schema receiver_schema_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.receiver_schema
    ADD CONSTRAINT receiver_schema_pkey PRIMARY KEY (version);


--
-- Name: secrets secrets_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (name);


--
-- Name: sinks sinks_name_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sinks
    ADD CONSTRAINT sinks_name_key UNIQUE (name);


--
-- Name: sinks sinks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sinks
    ADD CONSTRAINT sinks_pkey PRIMARY KEY (key);


--
-- Name: deliveries_dead; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX deliveries_dead ON public.deliveries USING btree (sink, event) WHERE (state = 2);


--
-- Name: deliveries_held; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX deliveries_held ON public.deliveries USING btree (holder) WHERE (holder IS NOT NULL);


--
-- Name: deliveries_pending; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX deliveries_pending ON public.deliveries USING btree (sink, due, event) WHERE (due IS NOT NULL);


--
-- Name: events_unmatched; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_unmatched ON public.events USING btree (key) WHERE (matched IS FALSE);


--
-- PostgreSQL database dump complete
--


